"""Which rank sits where, which groups it belongs to, and which expert lives on which rank.

Shape legend: W ranks of the world, E experts of a layer, G expert groups, n = E / G experts of a group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Union

import numpy as np

from locmoe_ops.errors import InputError

BASE_KINDS = ("world", "tp", "ep", "dp", "edp")
# A group of a base kind, cut at node borders: `ep_node` holds its ranks on one node, `ep_rail` one rank of every node,
# those with the same place among their node's ranks of the group. `node` and `rail` are those of the world.
GROUP_KINDS = (*BASE_KINDS, "node", "rail", *(f"{kind}_{part}" for kind in BASE_KINDS[1:] for part in ("node", "rail")))
# `ep2`, `ep2_node`, `ep2_rail`: the same of an expert-parallel group that is cut into 2 equal subgroups, of
# consecutive ranks; so for any divisor of its size.
_SUBGROUP_OF_EP = re.compile(r"ep(\d+)(?=$|_)")
PLACEMENT_KINDS = ("interleaved", "node_grouped")
# Sets of consecutive ranks over whose tokens a router's loss may take its means (see `Topology.count_sets`).
STATISTICS = ("rank", "node", "expert_parallel", "global")


@dataclass(frozen=True)
class Topology:
    """Ranks on nodes, and the process groups of expert and tensor parallelism.

    `rank = (edp_index * expert + ep_index) * tensor + tp_index` and `node = rank // ranks_per_node`: tensor-parallel
    ranks are neighbours, an expert-parallel group spans `expert * tensor` consecutive ranks, its replicas follow.

    Attributes:
        world_size: W. ranks_per_node: of each node.
        expert, tensor: ranks of an expert-parallel and of a tensor-parallel group.
    """

    world_size: int
    ranks_per_node: int
    expert: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("world_size", "ranks_per_node", "expert", "tensor"):
            if getattr(self, name) < 1:
                raise InputError(f"topology: {name} is {getattr(self, name)}, expected at least 1")
        if self.world_size % self.ranks_per_node:
            raise InputError(f"topology: {self.ranks_per_node} ranks a node do not divide {self.world_size} ranks")
        if self.world_size % self.model_ranks:
            raise InputError(
                f"topology: expert {self.expert} x tensor {self.tensor} = {self.model_ranks} "
                f"does not divide {self.world_size} ranks"
            )
        if self.model_ranks % self.ranks_per_node and self.ranks_per_node % self.model_ranks:
            raise InputError(
                f"topology: expert {self.expert} x tensor {self.tensor} = {self.model_ranks} and "
                f"{self.ranks_per_node} ranks a node: one must divide the other"
            )

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one whole copy of the experts."""
        return self.expert * self.tensor

    @property
    def nodes(self) -> int:
        return self.world_size // self.ranks_per_node

    @property
    def data(self) -> int:
        """Replicas of the dense parameters."""
        return self.world_size // self.tensor

    @property
    def expert_data(self) -> int:
        """Replicas of every expert."""
        return self.world_size // self.model_ranks

    def count_sets(self, statistics: str) -> int:
        """Into how many sets of consecutive ranks `statistics` (one of `STATISTICS`) divides the world: single ranks,
        nodes, expert-parallel groups with their tensor-parallel ranks, or one set of all.
        """
        return {"rank": self.world_size, "node": self.nodes, "expert_parallel": self.expert_data, "global": 1}[
            statistics
        ]

    def node_of(self, rank: int) -> int:
        return self._checked(rank) // self.ranks_per_node

    def tp_index(self, rank: int) -> int:
        return self._checked(rank) % self.tensor

    def ep_index(self, rank: int) -> int:
        return self._checked(rank) // self.tensor % self.expert

    def edp_index(self, rank: int) -> int:
        return self._checked(rank) // self.model_ranks

    def groups(self, kind: str) -> tuple[tuple[int, ...], ...]:
        """The partition of all ranks into groups of `kind`: one of `GROUP_KINDS`, or `ep` with a number of subgroups
        in place of `ep`.

        Groups are ordered by their first rank and ranks ascend inside a group; the order is the same on every rank.
        """
        return _groups(self, kind)

    def group_of(self, kind: str, rank: int) -> tuple[int, ...]:
        """The ranks of the group of `kind` that `rank` belongs to."""
        self._checked(rank)
        return next(group for group in self.groups(kind) if rank in group)

    def group_size(self, kind: str) -> int:
        """How many ranks the first rank's group of `kind` has."""
        return len(self.groups(kind)[0])

    def _checked(self, rank: int) -> int:
        if not 0 <= rank < self.world_size:
            raise InputError(f"topology: rank {rank} is outside 0..{self.world_size - 1}")
        return rank

    def _group_key(self, kind: str, rank: int) -> tuple[int, ...]:
        """What the members of a group of `kind` have in common."""
        cut = _SUBGROUP_OF_EP.match(kind)
        if cut:
            kind, subgroups = kind.replace(cut[0], "ep"), int(cut[1])
            if subgroups < 1 or self.expert % subgroups:
                raise InputError(
                    f"topology: {subgroups} subgroups of the expert-parallel group do not divide its {self.expert} "
                    "ranks"
                )
        if kind not in GROUP_KINDS:
            raise InputError(f"topology: unknown group kind {kind!r}, expected one of {', '.join(GROUP_KINDS)}")
        base, _, part = kind.rpartition("_") if "_" in kind else ("world", "", kind)
        if part in BASE_KINDS:
            tp, ep, edp = self.tp_index(rank), self.ep_index(rank), self.edp_index(rank)
            keys: dict[str, tuple[int, ...]] = {
                "world": (),
                "tp": (edp, ep),
                "ep": (edp, tp),
                "dp": (tp,),
                "edp": (ep, tp),
            }
            return (*keys[part], ep * subgroups // self.expert) if cut else keys[part]
        base = cut[0] if cut else base
        node, common = self.node_of(rank), self._group_key(base, rank)
        if part == "node":
            return (*common, node)
        before = range(node * self.ranks_per_node, rank)
        return (*common, sum(self._group_key(base, other) == common for other in before))


@lru_cache(maxsize=256)
def _groups(topology: Topology, kind: str) -> tuple[tuple[int, ...], ...]:
    members: dict[tuple[int, ...], list[int]] = {}
    for rank in range(topology.world_size):
        members.setdefault(topology._group_key(kind, rank), []).append(rank)
    return tuple(tuple(ranks) for ranks in members.values())


@dataclass(frozen=True)
class ExpertPlacement:
    """Which expert-parallel index holds which expert, and in which order.

    Experts of group g have the global ids `g*n .. g*n + n - 1`. Expert j of group g takes the position `j*G + g`
    (`interleaved`: every group spread over all ranks) or `g*n + j` (`node_grouped`: a group side by side), and
    position p lives at expert-parallel index `p // (E / ep)`.

    Attributes:
        num_experts: E. num_groups: G. ep: ranks that share the experts out. kind: one of `PLACEMENT_KINDS`.
    """

    num_experts: int
    num_groups: int
    ep: int
    kind: str = "interleaved"

    def __post_init__(self) -> None:
        for name in ("num_experts", "num_groups", "ep"):
            if getattr(self, name) < 1:
                raise InputError(f"expert placement: {name} is {getattr(self, name)}, expected at least 1")
        if self.kind not in PLACEMENT_KINDS:
            raise InputError(f"expert placement: kind {self.kind!r}, expected one of {', '.join(PLACEMENT_KINDS)}")
        if self.num_experts % self.num_groups:
            raise InputError(f"expert placement: {self.num_groups} groups do not divide {self.num_experts} experts")
        if self.num_experts % self.ep:
            raise InputError(
                f"expert placement: {self.ep} expert-parallel ranks do not divide {self.num_experts} experts"
            )

    @property
    def group(self) -> str:
        """Kind of the group whose ranks exchange tokens."""
        return "ep"

    @property
    def experts_per_group(self) -> int:
        return self.num_experts // self.num_groups

    @property
    def experts_per_rank(self) -> int:
        return self.num_experts // self.ep

    @cached_property
    def position_of(self) -> np.ndarray:
        """int32 (E,): position of every global expert id."""
        ids = np.arange(self.num_experts, dtype=np.int32)
        if self.kind == "node_grouped":
            return _read_only(ids)
        group, index = np.divmod(ids, self.experts_per_group)
        return _read_only((index * self.num_groups + group).astype(np.int32))

    @cached_property
    def expert_at(self) -> np.ndarray:
        """int32 (E,): global expert id at every position; the inverse of `position_of`."""
        return _read_only(np.argsort(self.position_of).astype(np.int32))

    def ep_index_of(self, expert: int) -> int:
        """Expert-parallel index of the ranks that hold global expert id `expert`."""
        if not 0 <= expert < self.num_experts:
            raise InputError(f"expert placement: expert {expert} is outside 0..{self.num_experts - 1}")
        return int(self.position_of[expert]) // self.experts_per_rank

    def local_experts(self, ep_index: int) -> tuple[int, ...]:
        """Global ids of the experts held at `ep_index`, in the order of their buffers."""
        if not 0 <= ep_index < self.ep:
            raise InputError(f"expert placement: expert-parallel index {ep_index} is outside 0..{self.ep - 1}")
        start = ep_index * self.experts_per_rank
        return tuple(int(e) for e in self.expert_at[start : start + self.experts_per_rank])


@dataclass(frozen=True)
class ExpertSubgroup:
    """One of several equal subgroups of an expert-parallel group, for tokens that go to no expert outside it.

    Attributes:
        whole: experts on the whole group. num_subgroups: that it is cut into, of consecutive ranks. index: of this one.
    """

    whole: ExpertPlacement
    num_subgroups: int
    index: int

    def __post_init__(self) -> None:
        if self.num_subgroups < 1 or self.whole.ep % self.num_subgroups:
            raise InputError(
                f"expert placement: {self.num_subgroups} subgroups do not divide {self.whole.ep} expert-parallel ranks"
            )
        if not 0 <= self.index < self.num_subgroups:
            raise InputError(f"expert placement: subgroup {self.index} is outside 0..{self.num_subgroups - 1}")

    @property
    def group(self) -> str:
        """Kind of the group whose ranks exchange tokens."""
        return f"ep{self.num_subgroups}"

    @property
    def ep(self) -> int:
        """Ranks of the subgroup."""
        return self.whole.ep // self.num_subgroups

    @property
    def num_experts(self) -> int:
        """Experts of the subgroup."""
        return self.whole.num_experts // self.num_subgroups

    @property
    def experts_per_rank(self) -> int:
        return self.whole.experts_per_rank

    @cached_property
    def position_of(self) -> np.ndarray:
        """int32 (E,): position in the subgroup of every global expert id; `num_experts` of one that is elsewhere."""
        position = self.whole.position_of - self.index * self.num_experts
        return _read_only(
            np.where((position >= 0) & (position < self.num_experts), position, self.num_experts).astype(np.int32)
        )


# What a dispatcher needs to know: `group`, `ep`, experts and their positions.
Placement = Union[ExpertPlacement, ExpertSubgroup]


def count_blocks(owners: np.ndarray) -> int:
    """Into how many blocks of neighbours an expert group's experts fall by who holds them.

    Args:
        owners: int (G, n), node or device of each expert.

    Raises:
        InputError: the blocks of a group are not equal, or not as many as another group's.
    """
    groups, per_group = owners.shape
    starts = owners[:, 1:] != owners[:, :-1]  # (G, n - 1): an expert with another owner than the one before
    blocks = 1 + int(starts[0].sum())
    expected = np.arange(1, per_group) % max(per_group // blocks, 1) == 0
    if per_group % blocks or not (starts == expected).all():
        raise InputError(
            f"the {per_group} experts of a group do not lie in equal blocks on their owners ({owners[0].tolist()} for "
            "the first group); expected moe.num_experts, moe.num_groups, moe.expert_placement and the "
            "expert-parallel degree to be such that each holds as many neighbours of every group"
        )
    return blocks


def devices_of_experts(placement: ExpertPlacement) -> np.ndarray:
    """int (G, n): the expert-parallel index of the ranks that hold each expert of `placement`."""
    holder = placement.position_of // placement.experts_per_rank
    return holder.reshape(placement.num_groups, -1)  # (G, n) <- (E,)


def nodes_of_experts(topology: Topology, placement: ExpertPlacement) -> np.ndarray:
    """int (G, n): the node on which a rank would find the expert on its own node; of several such nodes the first. Of
    an expert that no rank finds so, 0.

    Args:
        topology, placement: as for `local_experts_table`.
    """
    of_nodes = local_experts_table(topology, placement)[:: topology.ranks_per_node]  # (nodes, E)
    return of_nodes.argmax(0).reshape(placement.num_groups, -1)  # (G, n) <- (E,)


def local_experts_table(topology: Topology, placement: ExpertPlacement) -> np.ndarray:
    """bool (W, E): whether the copy of an expert that a rank would use is on the rank's own node.

    A rank uses the copy inside its own expert-parallel group, even where a replica sits closer.

    Args:
        topology: W ranks on nodes. placement: E experts on the ranks of its expert-parallel groups.

    Raises:
        InputError: the two disagree about the expert-parallel degree.
    """
    if topology.expert != placement.ep:
        raise InputError(
            f"expert-parallel degree {topology.expert} of the topology differs from {placement.ep} "
            "of the expert placement"
        )
    nodes = np.arange(topology.world_size) // topology.ranks_per_node
    holder = placement.position_of // placement.experts_per_rank  # (E,): expert-parallel index
    table = np.zeros((topology.world_size, placement.num_experts), dtype=bool)
    for group in topology.groups("ep"):
        members = np.array(group)
        table[members] = nodes[members[holder]][None, :] == nodes[members][:, None]
    return table


def numbered_nodes(local: np.ndarray) -> np.ndarray:
    """int (E,): which experts share a node, as numbers of nodes from 0.

    Args:
        local: bool (W, E), a `local_experts_table`. Experts of one node are local to the same ranks.
    """
    return np.asarray(np.unique(local.argmax(0), return_inverse=True)[1]).reshape(-1)


def most_nodes(top_k: int, local: np.ndarray) -> int:
    """On how many nodes the experts of one token can be at most; 0 where every token has its experts on one.

    Args:
        top_k: experts a token. local: bool (W, E), a `local_experts_table`.
    """
    nodes = int(numbered_nodes(local).max()) + 1
    return min(top_k, nodes) if top_k > 1 and nodes > 1 else 0


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
