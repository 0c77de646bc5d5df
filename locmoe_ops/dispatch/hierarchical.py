"""Hierarchical dispatch: tokens for experts of the own node stay on it; only the others cross between nodes.

Shape legend: V nodes of the expert-parallel group, R of its ranks on each, E experts, L = E / (V * R) experts a rank, d
hidden size. Each rank sends an expert of its own node up to C_in tokens and any other up to C_out; A = C_in - C_out, a
is A or half of it, M_in = R * L * A and M_out = E * C_out slots of the two parts of the send buffer.
"""

from typing import Callable, Optional

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.geometry import DispatchSetup, LayerSlots, two_tier_slots
from locmoe_ops.dispatch.repick import slot_assignment
from locmoe_ops.dispatch.slots import DispatchContext
from locmoe_ops.dispatch.specs.hierarchical import chunks_of, hierarchical_slots
from locmoe_ops.errors import InputError
from locmoe_ops.functions import ControlDependency, swap_first


class TwoTierDispatcher(Dispatcher):
    """What dispatchers share whose intra-node tier is the first part of the send buffer and whose inter-node tier is
    the rest: the exchanges of both, and how they overlap.

    With C_out = 0 the inter-node tier does not exist: nothing crosses between nodes, not even empty slots that
    everybody waits for, and what is meant for another node has no slot.

    With two chunks the intra-node tier is cut in two along its slots: one half is exchanged and computed while the
    inter-node tier is on its way out, the other while it is on its way home. With one chunk nothing overlaps.

    Args:
        collectives, setup, layer_slots, assignment, tag: as `Dispatcher`.

    Raises InputError for more than two chunks.
    """

    def __init__(
        self, collectives: Collectives, setup: DispatchSetup, layer_slots: LayerSlots, assignment: nn.Cell, tag: str
    ) -> None:
        if setup.options.chunks not in (1, 2):
            raise InputError(
                f"chunks {setup.options.chunks}: hierarchical dispatch overlaps its two tiers; expected 1 or 2"
            )
        super().__init__(collectives, setup, layer_slots, assignment, tag)
        self.local_experts, self.nodes, self.neighbours = (
            setup.placement.experts_per_rank,
            setup.nodes,
            setup.neighbours,
        )
        self.intra, self.inter = layer_slots.intra_node, layer_slots.capacity
        self.intra_rows = self.neighbours * self.local_experts * self.intra
        self.chunks = chunks_of(setup, self.inter)
        self.own_node_dispatch, self.own_node_combine = (
            nn.CellList(
                [collectives.all_to_all(setup.intra_node, f"{tag}/own node {way} {i}") for i in range(self.chunks)]
            )
            for way in ("dispatch", "combine")
        )
        if self.inter == 0:
            return
        dispatch, combine = (
            collectives.all_to_all_async(setup.inter_node, f"{tag}/inter {way}") for way in ("dispatch", "combine")
        )
        self.start_inter_dispatch, self.wait_inter_dispatch = dispatch.start, dispatch.wait
        self.start_inter_combine, self.wait_inter_combine = combine.start, combine.wait
        self.intra_dispatch = collectives.all_to_all(setup.intra_node, f"{tag}/intra dispatch")
        self.intra_combine = collectives.all_to_all(setup.intra_node, f"{tag}/intra combine")
        self.in_order = ControlDependency()

    def _both_tiers(
        self, intra: Optional[Tensor], inter: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(M_in + M_out, d) <- `intra` (M_in, d), or None without that tier, and `inter` as it travels, (V, ..., d)."""
        if intra is None:
            inter = self.wait_inter_combine(self._inter_node(self.start_inter_dispatch(inter), context, experts))
            return inter.reshape(-1, inter.shape[-1])  # (M_out, d) <- (V, ..., d)
        if self.chunks == 1:
            intra = self._intra_node(intra, 0, experts)
            inter = self.wait_inter_combine(self._inter_node(self.start_inter_dispatch(inter), context, experts))
        else:
            intra, inter = self._overlapped(intra, inter, context, experts)
        # (M_in + M_out, d) <- (M_in, d), (M_out, d) <- (V, ..., d)
        return ops.concat((intra, inter.reshape(-1, inter.shape[-1])), 0)

    def _overlapped(
        self, intra: Tensor, inter: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]
    ) -> tuple:
        """(M_in, d), (V, ..., d) -> the same, half of the first on either way of the second."""
        width, half = intra.shape[-1], self.intra // 2
        # (2, M_in / 2, d) <- (2, R * L, A / 2, d) <- (R * L, 2, A / 2, d) <- (M_in, d)
        halves = intra.reshape(-1, 2, half, width).transpose(1, 0, 2, 3).reshape(2, -1, width)
        first, second = ops.unstack(halves, 0)
        inter, first = self.in_order([self.start_inter_dispatch(inter), first])
        first = self._intra_node(first, 0, experts)
        inter, first = self.in_order([inter, first])
        inter = self._inter_node(inter, context, experts)
        inter, second = self.in_order([inter, second])
        second = self._intra_node(second, 1, experts)
        inter, second = self.in_order([inter, second])
        halves = ops.stack((first, second), 0).reshape(2, -1, half, width)  # (2, R * L, A / 2, d) <- (2, M_in / 2, d)
        intra = halves.transpose(1, 0, 2, 3).reshape(-1, width)  # (M_in, d) <- (R * L, 2, A / 2, d)
        return intra, self.wait_inter_combine(inter)

    def _intra_node(self, rows: Tensor, number: int, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """(R * L * a, d) -> the same, through the experts of the own node."""
        width = rows.shape[-1]
        # (R, L, a, d) <- (R * L * a, d)
        rows = self.own_node_dispatch[number](rows.reshape(self.neighbours, self.local_experts, -1, width))
        # (L, R * a, d) <- (L, R, a, d) <- (R, L, a, d)
        rows = experts(swap_first(rows).reshape(self.local_experts, -1, width))
        # (R, L, a, d) <- (L, R, a, d) <- (L, R * a, d)
        rows = swap_first(rows.reshape(self.local_experts, self.neighbours, -1, width))
        return self.own_node_combine[number](rows).reshape(-1, width)  # (R * L * a, d) <- (R, L, a, d)

    def _inter_node(self, handle: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """From the start of the inter-node tier's way out to the start of its way home."""
        raise NotImplementedError

    def _through_node(self, buffer: Tensor, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """(v, R, L, C_out, d), of v nodes, for this node's ranks -> the same, through its experts."""
        sources, width = buffer.shape[0], buffer.shape[-1]
        # (R, v, L, C_out, d) <- (v, R, L, C_out, d): from each neighbour, what its rail brought
        buffer = self.intra_dispatch(buffer.transpose(1, 0, 2, 3, 4))
        # (L, R * v * C_out, d) <- (L, R, v, C_out, d) <- (R, v, L, C_out, d)
        rows = experts(buffer.transpose(2, 0, 1, 3, 4).reshape(self.local_experts, -1, width))
        # (L, R, v, C_out, d) <- (L, R * v * C_out, d)
        buffer = rows.reshape(self.local_experts, self.neighbours, sources, self.inter, width)
        buffer = self.intra_combine(buffer.transpose(1, 2, 0, 3, 4))  # (R, v, L, C_out, d) <- (L, R, v, C_out, d)
        return buffer.transpose(1, 0, 2, 3, 4)  # (v, R, L, C_out, d) <- (R, v, L, C_out, d)


class HierarchicalDispatcher(TwoTierDispatcher):
    """Two tiers, so that bytes between nodes fall with C_out.

    1. Inter-node tier: buffers for all nodes go along the rail, to the rank with the same place on each node. One flow
       joins each pair of ranks on a rail, and one each pair of nodes and place.
    2. Intra-node tier, the first A slots of own-node experts: exchanged inside the node, through the experts, and back.
    3. Inter-node tier: on to the expert's rank inside the node, through the experts, back, and home along the rail.

    The rail's buffers hold C_out slots for each expert of every node, the own one too. That part does not leave the
    rank on the rail and takes what the intra-node tier has no slot for, hence A slots there and not C_in.

    Args:
        collectives: backend; the parts of its group `setup.placement.group` on nodes and on rails exchange tokens.
        setup: what fixes the shapes, see `hierarchical_slots`; of `options` all but `ragged_limit` count.
        tag: names the collectives in errors and counters.

    Raises InputError for more than two chunks.
    """

    def __init__(self, collectives: Collectives, setup: DispatchSetup, tag: str) -> None:
        slots = hierarchical_slots(setup)
        table = two_tier_slots(setup, collectives.rank, slots.intra_node * slots.shares, slots.capacity * slots.shares)
        super().__init__(collectives, setup, slots, slot_assignment(setup, table), tag)

    def run_experts(self, buffer: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """`buffer`, `context` and `experts`: see `Dispatcher.run_experts`."""
        width = buffer.shape[-1]
        if self.inter == 0:
            return self._intra_node(buffer, 0, experts)
        intra = None if self.intra == 0 else buffer[: self.intra_rows]
        inter = buffer if self.intra == 0 else buffer[self.intra_rows :]
        # (V, R, L, C_out, d) <- (M_out, d)
        inter = inter.reshape(self.nodes, self.neighbours, self.local_experts, self.inter, width)
        return self._both_tiers(intra, inter, context, experts)

    def _inter_node(self, handle: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """From the start of the inter-node tier's way out to the start of its way home."""
        # (V, R, L, C_out, d): of every node, for this node's ranks
        return self.start_inter_combine(self._through_node(self.wait_inter_dispatch(handle), experts))


def build(collectives: Collectives, setup: DispatchSetup, tag: str) -> HierarchicalDispatcher:
    """See `HierarchicalDispatcher`, whose arguments `collectives`, `setup` and `tag` are."""
    return HierarchicalDispatcher(collectives, setup, tag)
