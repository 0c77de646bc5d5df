"""The geometry of dispatch, without MindSpore: what fixes a dispatcher's shapes, its slots, and what it exchanges.

The Cells that move tokens, the planner, the audit and the benchmarks all read this; what one dispatcher alone does with
it stands at the head of its file.

Shape legend: T tokens of this rank, k choices a token, P ranks of the group that exchanges tokens, V nodes and R of its
ranks on each, E experts of these ranks, L = E / P on a rank, d hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Protocol

import numpy as np

from locmoe_ops.topology import Placement, Topology

TOKENS, RESULTS, COUNTS = "tokens", "results", "counts"  # what an exchange carries, see `DispatchExchange`


@dataclass(frozen=True)
class DispatchOptions:
    """How a dispatcher works: the keys of `moe.dispatch` without its type. Each uses those that it declares.

    Attributes:
        chunks: slices that travel while others are with the experts.
        group_wise: ranks of a tensor-parallel group, which hold the same tokens, send a share of the slots each.
        drop_priority: `position` or `weight`: which assignments keep their slots on overflow.
        overflow: `drop` or `repick`: what happens to an assignment without a slot, see `RepickingAssignment`.
        ragged_limit: rows that a rank has room for, over an even load; None: room for all tokens of all ranks.
        fused_permute: sort tokens by Ascend's kernel (`runtime.fused.permute`).
        fused_experts: the experts multiply by Ascend's kernel (`runtime.fused.experts`), which takes unequal groups.
    """

    chunks: int = 1
    group_wise: bool = False
    drop_priority: str = "position"
    overflow: str = "drop"
    ragged_limit: Optional[float] = None
    fused_permute: bool = False
    fused_experts: bool = False


class Capacities(Protocol):
    """Slots that a source rank wants for each expert, before any rounding. A dispatcher reads the one that it has use
    for; only then is it computed.
    """

    @property
    def uniform(self) -> int:
        """The same for every expert."""

    @property
    def tiers(self) -> tuple[int, int]:
        """For each expert of the own node, and for each of another."""

    @property
    def copies(self) -> Optional[int]:
        """For each other node, where a token travels to a node once; None: as many as the other slots can use."""


@dataclass(frozen=True)
class FixedCapacities:
    """`Capacities` as numbers."""

    uniform: int = 0
    tiers: tuple[int, int] = (0, 0)
    copies: Optional[int] = None


@dataclass(frozen=True)
class DispatchSetup:
    """All that fixes the shapes of a dispatcher.

    Attributes:
        topology: the ranks of the job.
        placement: which rank of the group `placement.group` holds which expert; one that none holds gets no token.
        tokens: T. top_k: k; a token's choices are distinct.
        capacities: slots that are wanted.
        options: how it works.
    """

    topology: Topology
    placement: Placement
    tokens: int
    top_k: int
    capacities: Capacities = FixedCapacities()
    options: DispatchOptions = DispatchOptions()

    @property
    def shares(self) -> int:
        """Ranks that a slot is shared out to: those of a tensor-parallel group, where it is group-wise."""
        return self.topology.tensor if self.options.group_wise else 1

    @property
    def intra_node(self) -> str:
        """Kind of the groups of ranks of `placement.group` on one node."""
        return f"{self.placement.group}_node"

    @property
    def inter_node(self) -> str:
        """Kind of the groups of ranks of `placement.group` with the same place on each node."""
        return f"{self.placement.group}_rail"

    @property
    def nodes(self) -> int:
        """V."""
        return self.topology.group_size(self.inter_node)

    @property
    def neighbours(self) -> int:
        """R."""
        return self.topology.group_size(self.intra_node)

    @property
    def experts_per_node(self) -> int:
        """E / V."""
        return self.placement.num_experts // self.nodes

    def node_of(self, rank: int) -> int:
        """Which of the V nodes `rank` is on, as the rail's groups count them."""
        place = self.topology.group_of(self.placement.group, rank).index(rank)
        return place * self.nodes // self.placement.ep


@dataclass(frozen=True)
class LayerSlots:
    """Of one sparse layer, for one rank's micro-batch.

    Attributes:
        capacity: slots for each expert and source rank; in two tiers those of the inter-node tier. Group-wise: of a
            share.
        intra_node: further slots for each expert of the own node, in two tiers. Group-wise: of a share.
        expert_calls: rows that each of this rank's experts is called with, one number a call; group-wise: of a share.
        send_rows: rows of the send buffer; group-wise: of a share.
        shares: ranks that a slot is shared out to (group-wise), else 1.
        counted: False where nothing is fixed: then rows travel as routing has it, and `capacity` is what there is room
            for.
        rows_of_all: rows that there is room for of all of this rank's experts together, where these compute on what has
            come alone; `expert_calls` are then equal parts of it. None: each computes on all that it has room for.
        copies: slots for copies of tokens to each node, where a token travels to a node once; 0: each assignment
            travels for itself.
    """

    capacity: int
    intra_node: int
    expert_calls: tuple[int, ...]
    send_rows: int
    shares: int = 1
    counted: bool = True
    rows_of_all: Optional[int] = None
    copies: int = 0

    @property
    def expert_rows(self) -> int:
        """Rows that each of this rank's experts has room for, all calls and shares together."""
        return sum(self.expert_calls) * self.shares


@dataclass(frozen=True)
class DispatchExchange:
    """A collective that a dispatcher calls once a micro-batch.

    Attributes:
        name: what it carries, for people. operation: as in `locmoe_ops.collectives`. group: of
            `locmoe_ops.topology.GROUP_KINDS`.
        rows: that this rank puts in, of d numbers; of counts, single numbers. An `all_to_all_v` is listed with the rows
            of an even spread of tokens.
        carries: `TOKENS` or `RESULTS`, in the type of the experts' matmuls; `COUNTS`, int32.
        backward: whether it belongs to the backward pass; gradients have the type of what they are gradients of.
        item: bytes of a number, where it travels in another type than that; None: in that.
        extra: numbers of a row beside its d, such as weights that travel with a token.
    """

    name: str
    operation: str
    group: str
    rows: int
    carries: str
    backward: bool = False
    item: Optional[int] = None
    extra: int = 0


def there_and_back(
    name: str, group: str, rows: int, operation: str = "all_to_all", item: Optional[int] = None, extra: int = 0
) -> list[DispatchExchange]:
    """Tokens to their experts and results back, and their gradients: four calls of an exchange that is its own adjoint.

    Args:
        name, group, rows, operation, item: as in `DispatchExchange`. extra: likewise, of tokens; results have none.
    """
    ways = ((name, TOKENS, extra), (f"{name}, back", RESULTS, 0))
    return [
        DispatchExchange(
            f"{way}, gradient" if backward else way, operation, group, rows, carries, backward, item, beside
        )
        for way, carries, beside in ways
        for backward in (False, True)
    ]


def share_exchanges(slots: LayerSlots) -> list[DispatchExchange]:
    """Where a tensor-parallel group shares the send buffer out (`ScatterToTpRegion`, `GatherFromTpRegion`)."""
    if slots.shares == 1:
        return []
    return [
        DispatchExchange("own share, gradient", "all_gather", "tp", slots.send_rows, TOKENS, True),
        DispatchExchange("whole from shares", "all_gather", "tp", slots.send_rows, RESULTS),
    ]


def gateway_exchanges(slots: LayerSlots, experts_per_rank: int) -> list[DispatchExchange]:
    """Group-wise, the ways into and out of the experts (`AllGatherSlots`, `ReduceScatterSlots`), call by call.

    Args:
        slots: of the layer. experts_per_rank: L.
    """
    found = []
    for rows in slots.expert_calls if slots.shares > 1 else ():
        share, whole = experts_per_rank * rows, experts_per_rank * rows * slots.shares
        for name, carries, first, second in (
            ("shares to experts", TOKENS, ("all_gather", share), ("reduce_scatter", whole)),
            ("shares of results", RESULTS, ("reduce_scatter", whole), ("all_gather", share)),
        ):
            found.append(DispatchExchange(name, first[0], "tp", first[1], carries))
            found.append(DispatchExchange(f"{name}, gradient", second[0], "tp", second[1], carries, True))
    return found


def share_of_slots(wanted: int, shares: int, chunks: int = 1) -> int:
    """Slots of one of `shares` equal shares that together hold `wanted` slots at least; a multiple of `chunks`."""
    return -(-wanted // (chunks * shares)) * chunks


@dataclass(frozen=True)
class SlotTable:
    """Where the slots of each expert lie in a send buffer: in one stretch, or in two.

    Attributes:
        start, first, second: <int32>[E]; the first `first[e]` slots of expert e begin at `start[e]`, further ones at
            `second[e]`.
        capacity: <int32>[E], slots in all.
        slots: M, length of the buffer.
    """

    start: np.ndarray
    first: np.ndarray
    second: np.ndarray
    capacity: np.ndarray
    slots: int

    def slot(self, expert: int, rank: int) -> int:
        """Place of the `rank`-th token (from 0) that gets a slot of `expert`."""
        inside = rank < self.first[expert]
        return int(self.start[expert] + rank if inside else self.second[expert] + rank - self.first[expert])


def uniform_slots(position_of: np.ndarray, capacity: int, experts: Optional[int] = None) -> SlotTable:
    """The same capacity for every expert, expert after expert in the order of positions.

    Args:
        position_of: <int>[E]. capacity: slots of each. experts: only positions below it have slots; None: E.
    """
    experts = len(position_of) if experts is None else experts
    every = np.where(position_of < experts, capacity, 0).astype(np.int32)
    start = (np.asarray(position_of) * capacity).astype(np.int32)
    return SlotTable(start, every, start, every, experts * capacity)


def two_tier_slots(setup: DispatchSetup, rank: int, intra: int, inter: int, in_both: bool = True) -> SlotTable:
    """Slots of one rank's send buffer: first those for experts of its own node (E / V of them), then those of every
    expert that the group has. Both parts are in the order of positions, which is node after node, rank after rank.

    Args:
        setup: topology and placement. rank: whose buffer it is.
        intra: slots of an expert in the first part. inter: in the second.
        in_both: whether experts of the own node use their slots in the second part, too; else these stay empty.
    """
    placement, on_node = setup.placement, setup.experts_per_node
    position = np.asarray(placement.position_of)
    own = position // on_node == setup.node_of(rank)
    second = (on_node * intra + position * inter).astype(np.int32)
    start = np.where(own, position % on_node * intra, second).astype(np.int32)
    first = np.where(own, intra, 0).astype(np.int32)
    further = np.where(own, inter if in_both else 0, inter)
    capacity = np.where(position < placement.num_experts, first + further, 0).astype(np.int32)
    return SlotTable(start, first, second, capacity, on_node * intra + placement.num_experts * inter)
