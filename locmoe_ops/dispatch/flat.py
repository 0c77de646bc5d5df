"""Flat dispatch: one padded all-to-all over the expert-parallel group takes tokens to their experts, another brings
them back.

Shape legend: P ranks of the expert-parallel group, E experts, L = E / P experts a rank, C slots per expert from each
rank, c = C / chunks slots of a chunk, d hidden size.
"""

from typing import Callable, List

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.repick import slot_assignment
from locmoe_ops.dispatch.slots import uniform_slots
from locmoe_ops.functions import ControlDependency
from locmoe_ops.topology import Placement


class FlatDispatcher(Dispatcher):
    """All ranks of the group exchange equal buffers, whatever the distance.

    With several chunks the buffers are cut along the slots: all chunks set out, and while one is with the experts,
    later ones are still on the way to them and earlier ones on the way back.

    Args:
        collectives: backend; its group `placement.group` is the one that exchanges tokens.
        placement: which rank of the group holds which expert; one that none holds gets no token.
        tokens, top_k: as `Dispatcher`. drop_priority: `position` or `weight`: which assignments keep their slots on
            overflow.
        capacity: C, rounded up to a multiple of `chunks` (group-wise: of `chunks` x tensor-parallel ranks).
        tag: names the collectives in errors and counters.
        group_wise: this rank sends its share of the slots (see `shares`); C below is then a share's.
        overflow: `drop` or `repick`: what happens to an assignment without a slot, see `RepickingAssignment`.
    """

    def __init__(
        self,
        collectives: Collectives,
        placement: Placement,
        tokens: int,
        top_k: int,
        capacity: int,
        drop_priority: str,
        tag: str,
        chunks: int = 1,
        group_wise: bool = False,
        overflow: str = "drop",
    ) -> None:
        shares = collectives.topology.tensor if group_wise else 1
        capacity = -(-capacity // (chunks * shares)) * chunks
        table = uniform_slots(placement.position_of, capacity * shares, placement.num_experts)
        super().__init__(
            tokens,
            top_k,
            slot_assignment(tokens, top_k, table, drop_priority, overflow),
            collectives if shares > 1 else None,
            tag,
        )
        self.ranks, group = placement.ep, placement.group
        self.local_experts = placement.num_experts // placement.ep
        self.capacity = capacity
        self.expert_rows = self.ranks * capacity
        self.chunks = chunks
        self.send = collectives.all_to_all(group, f"{tag}/dispatch")
        self.give_back = collectives.all_to_all(group, f"{tag}/combine")
        flights = [
            collectives.all_to_all_async(group, f"{tag}/{way}/{i}")
            for way in ("dispatch", "combine")
            for i in range(chunks)
        ]
        self.starts = nn.CellList([flight.start for flight in flights])  # of the way out, then of the way back
        self.waits = nn.CellList([flight.wait for flight in flights])
        self.together = ControlDependency()

    def through_experts(self, buffer: Tensor, experts: Callable[[Tensor], Tensor]) -> Tensor:
        width = buffer.shape[-1]
        if self.ranks == 1:
            return experts(buffer.reshape(self.local_experts, self.capacity, width)).reshape(-1, width)
        if self.chunks == 1:
            buffer = self.send(buffer.reshape(self.ranks, self.local_experts, self.capacity, width))
            return self.give_back(self._with_experts(buffer, experts)).reshape(-1, width)
        # (chunks, P, L, c, d) <- (M, d)
        parts = buffer.reshape(self.ranks, self.local_experts, self.chunks, -1, width).transpose(2, 0, 1, 3, 4)
        parts = self._in_chunks(ops.unstack(parts, 0), experts)
        return ops.stack(parts, 0).transpose(1, 2, 0, 3, 4).reshape(-1, width)

    def _in_chunks(self, parts: List[Tensor], experts: Callable[[Tensor], Tensor]) -> List[Tensor]:
        flying = []
        for i in range(self.chunks):
            flying.append(self.starts[i](parts[i]))
        flying = self.together(flying)  # all have set out before the first is awaited
        returning = []
        for i in range(self.chunks):
            part = self._with_experts(self.waits[i](flying[i]), experts)
            # This one is on its way back before the next is awaited.
            flying = self.together([*flying[:i], self.starts[self.chunks + i](part), *flying[i + 1 :]])
        returning = self.together(flying)
        return [self.waits[self.chunks + i](returning[i]) for i in range(self.chunks)]

    def _with_experts(self, buffer: Tensor, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """(P, L, c, d) from every rank -> the same, for every rank."""
        shape = buffer.shape
        # (L, P*c, d) <- (P, L, c, d): the tokens of all ranks for one expert lie together
        buffer = experts(buffer.transpose(1, 0, 2, 3).reshape(self.local_experts, -1, shape[-1]))
        return buffer.reshape(self.local_experts, self.ranks, -1, shape[-1]).transpose(1, 0, 2, 3)
