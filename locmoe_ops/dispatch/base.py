"""What all dispatchers share: slots on the way out, weights on the way back.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments, M slots of the send buffer, d hidden
size.
"""

from typing import Callable, Dict, Optional, Tuple

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.group_wise import GatherFromTpRegion, ScatterToTpRegion
from locmoe_ops.dispatch.repick import RepickingAssignment
from locmoe_ops.dispatch.slots import PermuteRows


class Dispatcher(nn.Cell):
    """Moves tokens to their experts and the experts' results back. It owns no parameters; its shapes are fixed at
    compile time.

    1. Give assignments their slots; copy tokens into the send buffer.
    2. `through_experts` (subclasses): buffer to wherever its experts are, experts, and back to the same slots.
    3. Copy results to assignments, scale and sum them; a dropped assignment contributes 0.

    Attributes:
        expert_rows: rows that each of this rank's experts is handed for one micro-batch, in one call or several;
            group-wise, of a share.

    Args:
        tokens: T. top_k: k. slots: gives the slots of this rank's send buffer, as `SlotAssignment` or
            `RepickingAssignment`.
        share_of: group-wise, the collectives whose tensor-parallel group holds the same tokens: `through_experts` is
            then given this rank's share, every P-th slot of each stretch of slots, all of which are multiples of P.
            None: all slots.
        tag: names the share's collectives.
    """

    expert_rows: int

    def __init__(
        self, tokens: int, top_k: int, slots: nn.Cell, share_of: Optional[Collectives] = None, tag: str = ""
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.top_k = top_k
        self.slots = slots
        self.repicks = isinstance(slots, RepickingAssignment)
        self.permute = PermuteRows()
        self.own_share = nn.Identity() if share_of is None else ScatterToTpRegion(share_of, f"{tag}/share")
        self.whole = nn.Identity() if share_of is None else GatherFromTpRegion(share_of, f"{tag}/whole")

    def move(
        self,
        x: Tensor,
        expert: Tensor,
        gate: Tensor,
        scale: Tensor,
        experts: Callable[[Tensor], Tensor],
        second: Optional[Tuple[Tensor, Tensor]] = None,
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """x <float>[T, d], expert <int32>[T, k] (E: no assignment), gate <float32>[T, k] (for the priority),
        scale <float32>[T, k]; `experts` maps <float>[L, slots, d] to the same shape -> <float>[T, d] and the context,
        see `SlotAssignment`.
        second: where overflow is re-picked, each token's second expert <int32>[T] (E: none) and its scale <float32>[T];
        the context is then that of `RepickingAssignment`.
        """
        context = self.slots(expert, gate) if second is None else self.slots(expert, gate, second[0])
        rows = x if self.top_k == 1 else ops.tile(x, (self.top_k, 1))  # (N, d), choice-major
        buffer = self.permute(rows, context["assignment"], context["filled"], context["slot"], context["kept"])
        buffer = self.whole(self.carry(self.own_share(buffer), context, experts))
        rows = self.permute(buffer, context["slot"], context["kept"], context["assignment"], context["filled"])
        scale = scale.T.reshape(-1, 1)  # (N, 1) <- (T, k)
        if second is not None:
            other = second[1].reshape(-1, 1)
            scale = ops.select(
                context["repicked"] > 0.5, other if self.top_k == 1 else ops.tile(other, (self.top_k, 1)), scale
            )
        rows = rows * ops.cast(scale, rows.dtype)
        y = rows if self.top_k == 1 else rows.reshape(self.top_k, self.tokens, -1).sum(0)
        return y, context

    def carry(self, buffer: Tensor, context: Dict[str, Tensor], experts: Callable[[Tensor], Tensor]) -> Tensor:
        """`through_experts`, for dispatchers that need to know who is in which slot."""
        return self.through_experts(buffer, experts)

    def through_experts(self, buffer: Tensor, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """<float>[M, d] -> <float>[M, d]: row i is what its expert makes of row i."""
        raise NotImplementedError
