"""Flat dispatch: one padded all-to-all over the expert-parallel group takes tokens to their experts, another brings them back.

Shape legend: T tokens of this rank, k choices a token, N = k * T, P ranks of the expert-parallel group, E experts,
L = E / P experts a rank, C slots per expert from each rank, d hidden size.
"""

from typing import Dict, Tuple

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives import Collectives
from locmoe_ops.dispatch.permute import PermuteRows
from locmoe_ops.dispatch.slots import SlotAssignment
from locmoe_ops.topology import ExpertPlacement


class FlatDispatcher(nn.Cell):
    """Moves tokens to expert buffers and back. It owns no parameters and its shapes are fixed at compile time.

    Args:
        collectives: backend; its group `ep` is the one that exchanges tokens.
        placement: which rank of the group holds which expert.
        tokens: T. top_k: k. capacity: C.
        drop_priority: `position` or `weight`: which assignments keep their slots when an expert overflows.
        tag: names the collectives in errors and counters.
    """

    def __init__(self, collectives: Collectives, placement: ExpertPlacement, tokens: int, top_k: int, capacity: int,
                 drop_priority: str, tag: str) -> None:
        super().__init__()
        self.ranks = placement.ep
        self.local_experts = placement.num_experts // placement.ep
        self.tokens = tokens
        self.top_k = top_k
        self.capacity = capacity
        self.slots = SlotAssignment(tokens, top_k, capacity, placement.position_of, drop_priority == "weight")
        self.permute = PermuteRows()
        self.send = collectives.all_to_all("ep", f"{tag}/dispatch")
        self.give_back = collectives.all_to_all("ep", f"{tag}/combine")

    def dispatch(self, x: Tensor, expert: Tensor, weight: Tensor) -> Tuple[Tensor, Dict[str, Tensor]]:
        """x <float>[T, d], expert <int32>[T, k], weight <float32>[T, k] -> buffers <float>[L, P*C, d] and the context for `combine`."""
        context = self.slots(expert, weight)
        rows = x if self.top_k == 1 else ops.tile(x, (self.top_k, 1))  # (N, d), choice-major
        buffer = self.permute(rows, context["assignment"], context["filled"], context["slot"], context["kept"])
        if self.ranks == 1:
            return buffer.reshape(self.local_experts, self.capacity, -1), context
        buffer = self.send(buffer.reshape(self.ranks, self.local_experts, self.capacity, -1))
        # (L, P*C, d) <- (P, L, C, d): the tokens of all ranks for one expert lie together
        return buffer.transpose(1, 0, 2, 3).reshape(self.local_experts, self.ranks * self.capacity, -1), context

    def combine(self, buffers: Tensor, weight: Tensor, context: Dict[str, Tensor]) -> Tensor:
        """buffers <float>[L, P*C, d], weight <float32>[T, k] -> <float>[T, d]; a dropped assignment contributes 0."""
        width = buffers.shape[-1]
        if self.ranks > 1:
            buffers = buffers.reshape(self.local_experts, self.ranks, self.capacity, width).transpose(1, 0, 2, 3)
            buffers = self.give_back(buffers)
        rows = self.permute(buffers.reshape(-1, width), context["slot"], context["kept"], context["assignment"], context["filled"])
        scale = ops.cast(weight, rows.dtype).T.reshape(-1, 1)  # (N, 1) <- (T, k)
        rows = rows * scale
        return rows if self.top_k == 1 else rows.reshape(self.top_k, self.tokens, width).sum(0)
