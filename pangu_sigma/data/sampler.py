"""Which rows make up the global batch of a step: a pure function of seed, step and layout.

Nothing is replayed on resume: how often a domain was drawn before a step has a closed form, and its rows follow a
permutation per epoch that depends on seed, domain and epoch alone.
"""

from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.data.domains import domains_of_node

_POOL = -1  # stream of the permutation over several domains' rows together


class GlobalBatch(NamedTuple):
    """Rows of one step in the order of logical ranks, each of which has an equal run of them."""

    domain: np.ndarray  # (global_batch_size,) int32
    row: np.ndarray  # (global_batch_size,) int64, row number within the domain's training split


class Zone(NamedTuple):
    """Logical ranks that receive the same domains; ascending."""

    ranks: Tuple[int, ...]
    domains: Tuple[int, ...]


def make_zones(layout: Topology, placement: str, domain_groups: Sequence[int], num_groups: int) -> List[Zone]:
    """Partition of the logical ranks by the domains they receive.

    Args:
        layout: cluster of the logical ranks.
        placement: as `data.placement` has it: one zone if `shuffled`, else by node.
        domain_groups: expert group of each domain.
        num_groups: of the experts.

    Raises:
        InputError: a node to which no domain falls.
    """
    if placement == "shuffled":
        return [Zone(tuple(range(layout.world_size)), tuple(range(len(domain_groups))))]
    ranks: Dict[Tuple[int, ...], List[int]] = {}
    for rank in range(layout.world_size):
        node = layout.node_of(rank)
        domains = domains_of_node(node, layout.nodes, domain_groups, num_groups)
        if not domains:
            raise InputError(
                f"data.placement: domain_by_node leaves node {node} of {layout.nodes} without a domain "
                f"(moe.domain_groups {list(domain_groups)}, moe.num_groups {num_groups}); expected one at least"
            )
        ranks.setdefault(domains, []).append(rank)
    return [Zone(tuple(members), domains) for domains, members in ranks.items()]


class BatchSampler:
    """Draws the global batch of any step.

    mixing `balanced`: the rows of a rank rotate through its zone's domains; the rotation starts one further every step
    and runs on from rank to rank, so that over as many steps as domains every rank has equal shares of them.
    mixing `proportional`: the rows of a zone's domains form one pool, walked by one permutation per epoch.

    Args:
        rows: training rows of each domain.
        layout: cluster whose ranks receive the rows.
        zones: its ranks by the domains they receive.
        global_batch_size: rows a step.
        seed: of the permutations.
        mixing: `balanced` or `proportional`.

    Attributes:
        layout, zones, global_batch_size: as given.

    Raises:
        InputError: the layout's ranks do not divide `global_batch_size`.
    """

    def __init__(
        self,
        rows: Sequence[int],
        layout: Topology,
        zones: Sequence[Zone],
        global_batch_size: int,
        seed: int,
        mixing: str = "balanced",
    ) -> None:
        if global_batch_size % layout.world_size:
            raise InputError(
                f"train.global_batch_size: found {global_batch_size}; expected a multiple of "
                f"{layout.world_size}, the ranks of moe.layout (or of the job)"
            )
        self.layout = layout
        self.zones = list(zones)
        self.global_batch_size = global_batch_size
        self._rows = [int(count) for count in rows]
        self._seed = seed
        self._draw = self._balanced if mixing == "balanced" else self._proportional
        self._permutations: Dict[Tuple[int, int], np.ndarray] = {}

    def batch(self, step: int) -> GlobalBatch:
        """Rows of `step`, counted from 0."""
        share = self.global_batch_size // self.layout.world_size
        domain = np.empty((self.layout.world_size, share), np.int32)
        row = np.empty((self.layout.world_size, share), np.int64)
        for zone in self.zones:
            draws = len(zone.ranks) * share
            zone_domain, zone_row = self._draw(zone, step, draws)
            domain[list(zone.ranks)] = zone_domain.reshape(-1, share)
            row[list(zone.ranks)] = zone_row.reshape(-1, share)
        return GlobalBatch(domain.ravel(), row.ravel())

    def epoch(self, step: int) -> float:
        """Rows drawn before `step`, in passes over the training split (some domains may be ahead of others)."""
        return step * self.global_batch_size / sum(self._rows)

    def _balanced(self, zone: Zone, step: int, draws: int) -> Tuple[np.ndarray, np.ndarray]:
        count = len(zone.domains)
        turn = (step + np.arange(draws)) % count
        row = np.empty(draws, np.int64)
        for index, domain in enumerate(zone.domains):
            mine = np.flatnonzero(turn == index)
            before = draws_before(index, count, step, draws)
            row[mine] = self._walk(domain, self._rows[domain], before + np.arange(len(mine)))
        return np.asarray(zone.domains, np.int32)[turn], row

    def _proportional(self, zone: Zone, step: int, draws: int) -> Tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum([self._rows[domain] for domain in zone.domains])
        pooled = self._walk(_POOL - zone.ranks[0], int(ends[-1]), step * draws + np.arange(draws))
        index = np.searchsorted(ends, pooled, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        return np.asarray(zone.domains, np.int32)[index], pooled - starts[index]

    def _walk(self, stream: int, size: int, draws: np.ndarray) -> np.ndarray:
        """Rows of the numbered draws, (n,) int64: draw k is entry k % size of the permutation of epoch k // size."""
        epochs, indices = np.divmod(draws, size)
        rows = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            if (stream, epoch) not in self._permutations:  # this epoch's and the one before stay in memory
                for key in [key for key in self._permutations if key[0] == stream and key[1] != epoch - 1]:
                    del self._permutations[key]
                self._permutations[(stream, epoch)] = permutation(size, self._seed, stream, epoch)
            rows[chosen] = self._permutations[(stream, epoch)][indices[chosen]]
        return rows


def draws_before(index: int, count: int, step: int, draws: int) -> int:
    """How often entry `index` of a rotation of `count` came up before `step`; step t takes `draws` entries from t."""
    whole, rest = divmod(step, count)  # over `count` steps every entry comes up equally often
    partial = sum((t + draws - 1 - index) // count - (t - 1 - index) // count for t in range(rest))
    return whole * draws + partial


def permutation(size: int, *key: int) -> np.ndarray:
    """A pseudo-random permutation of range(size), (size,) int64, a pure function of `key`.

    Sorted hashes, not NumPy's generator, whose stream may change with its version: a resumed run must find its rows.
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _scramble(state ^ np.uint64(word % 2**64))
    return np.argsort(_scramble(state + np.arange(size, dtype=np.uint64)), kind="stable")


def _scramble(values: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014) of each value, uint64 with wrap-around."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
