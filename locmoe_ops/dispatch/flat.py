"""Flat dispatch: one padded all-to-all over the expert-parallel group takes tokens to their experts, another brings
them back.

Shape legend: P ranks of the expert-parallel group, E experts, L = E / P experts a rank, C slots per expert from each
rank, c = C / chunks slots of a chunk, M = E * C slots of the send buffer, d hidden size.
"""

from typing import Callable, List

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.geometry import (
    DispatchSetup,
    uniform_slots,
)
from locmoe_ops.dispatch.repick import slot_assignment
from locmoe_ops.dispatch.slots import DispatchContext
from locmoe_ops.dispatch.specs.flat import flat_slots
from locmoe_ops.functions import ControlDependency, swap_first


class FlatDispatcher(Dispatcher):
    """All ranks of the group exchange equal buffers, whatever the distance.

    With several chunks the buffers are cut along the slots: all chunks start, and while one is with the experts, later
    ones are still on the way to them and earlier ones on the way back.

    Args:
        collectives: backend; its group `setup.placement.group` is the one that exchanges tokens.
        setup: what fixes the shapes, see `flat_slots`; of `options` all but `ragged_limit` count.
        tag: names the collectives in errors and counters.
    """

    def __init__(self, collectives: Collectives, setup: DispatchSetup, tag: str) -> None:
        slots, placement = flat_slots(setup), setup.placement
        table = uniform_slots(placement.position_of, slots.capacity * slots.shares, placement.num_experts)
        super().__init__(collectives, setup, slots, slot_assignment(setup, table), tag)
        self.ranks, self.local_experts = placement.ep, placement.experts_per_rank
        self.capacity, self.chunks = slots.capacity, setup.options.chunks
        self.dispatch_a2a = collectives.all_to_all(placement.group, f"{tag}/dispatch")
        self.combine_a2a = collectives.all_to_all(placement.group, f"{tag}/combine")
        asynchronous = [
            collectives.all_to_all_async(placement.group, f"{tag}/{way}/{i}")
            for way in ("dispatch", "combine")
            for i in range(self.chunks)
        ]
        self.starts = nn.CellList([one.start for one in asynchronous])  # of the way out, then of the way back
        self.waits = nn.CellList([one.wait for one in asynchronous])
        self.in_order = ControlDependency()

    def run_experts(self, buffer: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """`buffer`, `context` and `experts`: see `Dispatcher.run_experts`."""
        width = buffer.shape[-1]
        if self.ranks == 1:
            # (M, d) <- (E, C, d) <- (M, d)
            return experts(buffer.reshape(self.local_experts, self.capacity, width)).reshape(-1, width)
        if self.chunks == 1:
            buffer = buffer.reshape(self.ranks, self.local_experts, self.capacity, width)  # (P, L, C, d) <- (M, d)
            buffer = self._with_experts(self.dispatch_a2a(buffer), experts)
            return self.combine_a2a(buffer).reshape(-1, width)  # (M, d) <- (P, L, C, d)
        # (P, L, chunks, c, d) <- (M, d)
        buffer = buffer.reshape(self.ranks, self.local_experts, self.chunks, -1, width)
        parts = self._in_chunks(ops.unstack(buffer, 2), experts)  # chunks * (P, L, c, d)
        return ops.stack(parts, 2).reshape(-1, width)  # (M, d) <- (P, L, chunks, c, d) <- chunks * (P, L, c, d)

    def _in_chunks(self, parts: List[Tensor], experts: Callable[[Tensor], Tensor]) -> List[Tensor]:
        """(P, L, c, d) each -> the same, overlapped."""
        handles = []
        for i in range(self.chunks):
            handles.append(self.starts[i](parts[i]))
        handles = self.in_order(handles)  # all have started before the first is awaited
        for i in range(self.chunks):
            part = self._with_experts(self.waits[i](handles[i]), experts)
            # This one is on its way back before the next is awaited.
            handles = self.in_order([*handles[:i], self.starts[self.chunks + i](part), *handles[i + 1 :]])
        handles = self.in_order(handles)
        return [self.waits[self.chunks + i](handles[i]) for i in range(self.chunks)]

    def _with_experts(self, buffer: Tensor, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """(P, L, c, d) from every rank -> the same, for every rank."""
        width = buffer.shape[-1]
        # (L, P * c, d) <- (L, P, c, d) <- (P, L, c, d): the tokens of all ranks for one expert lie together
        buffer = experts(swap_first(buffer).reshape(self.local_experts, -1, width))
        # (P, L, c, d) <- (L, P, c, d) <- (L, P * c, d)
        return swap_first(buffer.reshape(self.local_experts, self.ranks, -1, width))


def build(collectives: Collectives, setup: DispatchSetup, tag: str) -> FlatDispatcher:
    """See `FlatDispatcher`, whose arguments `collectives`, `setup` and `tag` are."""
    return FlatDispatcher(collectives, setup, tag)
