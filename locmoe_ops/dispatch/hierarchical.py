"""Hierarchical dispatch: tokens for experts of the own node stay on it; only the others cross between nodes.

Shape legend: V nodes of the expert-parallel group, R of its ranks on each, E experts, L = E / (V * R) experts a rank, d
hidden size. Each rank sends an expert of its own node up to C_in tokens and any other up to C_out; A = C_in - C_out.
"""

from typing import Callable

import numpy as np

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.repick import slot_assignment
from locmoe_ops.dispatch.slots import SlotTable
from locmoe_ops.errors import InputError
from locmoe_ops.functions import ControlDependency
from locmoe_ops.topology import Placement, Topology


class HierarchicalDispatcher(Dispatcher):
    """Two tiers, so that bytes between nodes fall with C_out.

    1. Far tier: buffers for all nodes go along the rail, to the rank with the same place on each node. One flow joins
       each pair of ranks on a rail, and one each pair of nodes and place.
    2. Near tier, the first A slots of own-node experts: exchanged inside the node, through the experts, and back.
    3. Far tier: handed on inside the node, through the experts, handed back, and home along the rail.

    The rail's buffers hold C_out slots for each expert of every node, the own one too. That part does not leave the
    rank on the rail and takes what the near tier has no slot for, hence A slots there and not C_in.

    With C_out = 0 the far tier does not exist: nothing crosses between nodes, not even empty slots that everybody waits
    for, and what is meant for another node has no slot.

    With two chunks the near tier is cut in two along its slots: one half is exchanged and computed while the far tier
    is on its way out, the other while it is on its way home. With one chunk nothing overlaps.

    Args:
        collectives: backend; the parts of its group `placement.group` on nodes and on rails exchange tokens.
        placement: which rank of the group holds which expert; one that none holds gets no token.
        tokens, top_k: as `Dispatcher`. drop_priority: `position` or `weight`: which assignments keep their slots on
            overflow.
        near_capacity: C_in, and far_capacity: C_out. A is rounded up to a multiple of `chunks`; if C_in < C_out, it is
            0. Group-wise, C_out is a multiple of P tensor-parallel ranks, and A of P * `chunks`. With C_out = 0 there
               is one chunk.
        tag: names the collectives in errors and counters.
        group_wise: this rank sends its share of the slots (see `shares`); A and C_out below are then a share's.
        overflow: `drop` or `repick`: what happens to an assignment without a slot, see `RepickingAssignment`.

    Raises InputError for more than two chunks.
    """

    def __init__(
        self,
        collectives: Collectives,
        placement: Placement,
        tokens: int,
        top_k: int,
        near_capacity: int,
        far_capacity: int,
        drop_priority: str,
        tag: str,
        chunks: int = 1,
        group_wise: bool = False,
        overflow: str = "drop",
    ) -> None:
        if chunks not in (1, 2):
            raise InputError(f"chunks {chunks}: hierarchical dispatch overlaps its two tiers; expected 1 or 2")
        topology, rank = collectives.topology, collectives.rank
        shares = topology.tensor if group_wise else 1
        far = -(-far_capacity // shares)
        chunks = chunks if far else 1  # a tier alone has nothing to overlap with
        near = -(-max(near_capacity - far * shares, 0) // (chunks * shares)) * chunks
        table = two_tier_slots(topology, placement, rank, near * shares, far * shares)
        super().__init__(
            tokens,
            top_k,
            slot_assignment(tokens, top_k, table, drop_priority, overflow),
            collectives if shares > 1 else None,
            tag,
        )
        self.local_experts = placement.experts_per_rank
        inside, rail = f"{placement.group}_node", f"{placement.group}_rail"
        self.neighbours = len(topology.group_of(inside, rank))
        self.nodes = len(topology.group_of(rail, rank))
        self.near, self.far = near, far
        self.expert_rows = self.neighbours * (near + self.nodes * far)
        self.near_rows = placement.num_experts // self.nodes * near
        self.chunks = chunks
        self.near_out = nn.CellList([collectives.all_to_all(inside, f"{tag}/near out {i}") for i in range(chunks)])
        self.near_home = nn.CellList([collectives.all_to_all(inside, f"{tag}/near home {i}") for i in range(chunks)])
        if far == 0:
            return
        rail_out, rail_home = (collectives.all_to_all_async(rail, f"{tag}/far {way}") for way in ("out", "home"))
        self.depart, self.arrive = rail_out.start, rail_out.wait
        self.return_home, self.at_home = rail_home.start, rail_home.wait
        self.hand_on = collectives.all_to_all(inside, f"{tag}/far handed on")
        self.hand_back = collectives.all_to_all(inside, f"{tag}/far handed back")
        self.together = ControlDependency()

    def through_experts(self, buffer: Tensor, experts: Callable[[Tensor], Tensor]) -> Tensor:
        if self.far == 0:
            return self._near(buffer, 0, experts)
        if self.near == 0:
            far = self.at_home(self._far(self.arrive(self._depart(buffer)), experts))
            return far.reshape(-1, buffer.shape[-1])
        near, far = buffer[: self.near_rows], buffer[self.near_rows :]
        if self.chunks == 1:
            near = self._near(near, 0, experts)
            far = self.at_home(self._far(self.arrive(self._depart(far)), experts))
        else:
            near, far = self._overlapped(near, far, experts)
        return ops.concat((near, far.reshape(-1, buffer.shape[-1])), 0)

    def _overlapped(self, near: Tensor, far: Tensor, experts: Callable[[Tensor], Tensor]) -> tuple:
        width = near.shape[-1]
        # (2, R * L * A / 2, d) <- (R * L * A, d)
        halves = near.reshape(-1, 2, self.near // 2, width).transpose(1, 0, 2, 3).reshape(2, -1, width)
        first, second = ops.unstack(halves, 0)
        far, first = self.together([self._depart(far), first])
        first = self._near(first, 0, experts)
        far, first = self.together([far, first])
        far = self._far(self.arrive(far), experts)
        far, second = self.together([far, second])
        second = self._near(second, 1, experts)
        far, second = self.together([far, second])
        near = (
            ops.stack((first, second), 0).reshape(2, -1, self.near // 2, width).transpose(1, 0, 2, 3).reshape(-1, width)
        )
        return near, self.at_home(far)

    def _near(self, rows: Tensor, number: int, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """(R * L * a, d) -> the same, through the experts of the own node; a is A or half of it."""
        width = rows.shape[-1]
        rows = self.near_out[number](rows.reshape(self.neighbours, self.local_experts, -1, width))
        rows = experts(rows.transpose(1, 0, 2, 3).reshape(self.local_experts, -1, width))  # (L, R * a, d)
        rows = rows.reshape(self.local_experts, self.neighbours, -1, width).transpose(1, 0, 2, 3)
        return self.near_home[number](rows).reshape(-1, width)

    def _depart(self, rows: Tensor) -> Tensor:
        return self.depart(rows.reshape(self.nodes, self.neighbours, self.local_experts, self.far, -1))

    def _far(self, buffer: Tensor, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """(V, R, L, C_out, d) from every node for this node's ranks -> the same, on its way home."""
        width = buffer.shape[-1]
        buffer = self.hand_on(
            buffer.transpose(1, 0, 2, 3, 4)
        )  # (R, V, L, C_out, d): from each neighbour, what its rail brought
        rows = experts(buffer.transpose(2, 0, 1, 3, 4).reshape(self.local_experts, -1, width))
        buffer = rows.reshape(self.local_experts, self.neighbours, self.nodes, self.far, width).transpose(1, 2, 0, 3, 4)
        return self.return_home(self.hand_back(buffer).transpose(1, 0, 2, 3, 4))


def two_tier_slots(topology: Topology, placement: Placement, rank: int, near: int, far: int) -> SlotTable:
    """Slots of `rank`'s send buffer: `near` for each expert of its node (E / V of them), then `far` for every expert
    that the group has.

    Both parts are in the order of positions (see `ExpertPlacement`), which is node after node, rank after rank.
    """
    nodes = len(topology.group_of(f"{placement.group}_rail", rank))
    here = topology.group_of(placement.group, rank).index(rank) * nodes // placement.ep
    on_node = placement.num_experts // nodes
    position = np.asarray(placement.position_of)
    own = position // on_node == here
    second = (on_node * near + position * far).astype(np.int32)
    start = np.where(own, position % on_node * near, second).astype(np.int32)
    first = np.where(own, near, 0).astype(np.int32)
    capacity = np.where(position < placement.num_experts, first + far, 0).astype(np.int32)
    return SlotTable(start, first, second, capacity, on_node * near + placement.num_experts * far)
