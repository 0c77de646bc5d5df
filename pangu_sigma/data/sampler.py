"""Which rows make up the global batch of a step, and which rank reads them: a function of seed, step and placement.

Nothing is replayed on resume: how often a domain was drawn before a step has a closed form, and its rows follow a
permutation per epoch that depends on seed, domain and epoch alone.
"""

import functools
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.data.known_routes import KnownRoutes, assign_rows
from pangu_sigma.data.placement import RowPlacement, Zone, on_nodes

ROTATION = 4093  # places of a weighted rotation, prime: weights are met to one in so many
STRIDE = 2530  # from step to step, by the golden section of it: no rank keeps to the same places of a pattern in it
_POOL = -1  # stream of the permutation over several domains' rows together


class GlobalBatch(NamedTuple):
    """Rows of one step in the order of logical ranks, each of which has an equal run of them."""

    domain: np.ndarray  # (global_batch_size,) int32
    row: np.ndarray  # (global_batch_size,) int64, row number within the domain's training split


class BatchSampler:
    """Draws the global batch of any step.

    mixing `balanced`: the rows of a rank rotate through its zone's domains; the rotation starts one further every step
    and runs on from rank to rank, so that over as many steps as domains every rank has equal shares of them.
    mixing `proportional`: the rows of a zone's domains form one pool, walked by one permutation per epoch.
    mixing `weighted`: as balanced, but the rotation has 4093 places, of which each domain has its weight's share,
    evenly spread, and steps begin all over it; over as many steps as places, ranks have equal shares.

    Args:
        cells: training rows of each domain, by cluster (one where there are none). An epoch's walk through a domain
            keeps near the clusters' shares everywhere, so that a step has its part of each.
        placement: which ranks receive which rows.
        global_batch_size: rows a step.
        seed: of the permutations.
        mixing: `balanced`, `proportional` or `weighted`.
        weights: shares of the domains, for `weighted`.

    Attributes:
        placement, global_batch_size: as given.
        routes: for rows that are placed by them, to be set before the first batch: they are the network's.

    Raises:
        InputError: the layout's ranks do not divide `global_batch_size`.
    """

    def __init__(
        self,
        cells: Sequence[Sequence[int]],
        placement: RowPlacement,
        global_batch_size: int,
        seed: int,
        mixing: str = "balanced",
        weights: Sequence[float] = (),
    ) -> None:
        ranks = placement.layout.world_size
        if global_batch_size % ranks:
            raise InputError(
                f"train.global_batch_size: found {global_batch_size}; expected a multiple of "
                f"{ranks}, the ranks of moe.logical_topology (or of the job)"
            )
        self.placement = placement
        self.global_batch_size = global_batch_size
        self.routes: Optional[KnownRoutes] = None
        self._cells = [tuple(map(int, of_domain)) for of_domain in cells]
        self._rows = [sum(of_domain) for of_domain in self._cells]
        self._seed = seed
        draw = {"balanced": self._balanced, "proportional": self._proportional, "weighted": self._weighted}
        self._draw = draw[mixing]
        self._weights = tuple(weights)
        self._permutations: Dict[Tuple[int, int], np.ndarray] = {}

    def batches(self, steps: Sequence[int]) -> List[GlobalBatch]:
        """Rows of each of `steps`, counted from 0. Rows that are placed by routes are read for all of them at once."""
        batches = [self._drawn(step) for step in steps]
        if not self.placement.by_routes:
            return batches
        assert self.routes is not None, "rows placed by routes before the routes are known"
        domain, row = (np.concatenate([batch[field] for batch in batches]) for field in (0, 1))
        at_home = self.routes.tokens_at_home("train", domain, row)
        # Each row on the node that the routes assign it, in the order in which they are drawn.
        orders = [np.argsort(assign_rows(tokens), kind="stable") for tokens in np.split(at_home, len(batches))]
        return [GlobalBatch(batch.domain[order], batch.row[order]) for batch, order in zip(batches, orders)]

    def batch(self, step: int) -> GlobalBatch:
        """Rows of `step`, counted from 0."""
        return self.batches([step])[0]

    def _drawn(self, step: int) -> GlobalBatch:
        layout = self.placement.layout
        share = self.global_batch_size // layout.world_size
        domain = np.empty((layout.world_size, share), np.int32)
        row = np.empty((layout.world_size, share), np.int64)
        for zone in self.placement.zones:
            draws = len(zone.ranks) * share
            zone_domain, zone_row = self._draw(zone, step, draws)
            if zone.line is not None:  # within a node the rows stay as they are drawn: domains in turn
                places = zone.line.places("train", zone_domain, zone_row)
                order = np.argsort(on_nodes(places, len(zone.ranks) // layout.ranks_per_node), kind="stable")
                zone_domain, zone_row = zone_domain[order], zone_row[order]
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
            row[mine] = self._walk(domain, self._cells[domain], before + np.arange(len(mine)))
        return np.asarray(zone.domains, np.int32)[turn], row

    def _weighted(self, zone: Zone, step: int, draws: int) -> Tuple[np.ndarray, np.ndarray]:
        rotation, drawn = weighted_rotation(tuple(self._weights[domain] for domain in zone.domains), draws)
        turn = rotation[(step * STRIDE + np.arange(draws)) % ROTATION]
        whole, steps = divmod(step, ROTATION)
        before = whole * drawn[-1] + drawn[steps]
        row = np.empty(draws, np.int64)
        for index, domain in enumerate(zone.domains):
            mine = np.flatnonzero(turn == index)
            row[mine] = self._walk(domain, self._cells[domain], before[index] + np.arange(len(mine)))
        return np.asarray(zone.domains, np.int32)[turn], row

    def _proportional(self, zone: Zone, step: int, draws: int) -> Tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum([self._rows[domain] for domain in zone.domains])
        pool = [count for domain in zone.domains for count in self._cells[domain]]
        pool = pool if len(pool) > len(zone.domains) else [sum(pool)]  # domains alone are no strata
        pooled = self._walk(_POOL - zone.ranks[0], pool, step * draws + np.arange(draws))
        index = np.searchsorted(ends, pooled, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        return np.asarray(zone.domains, np.int32)[index], pooled - starts[index]

    def _walk(self, stream: int, strata: Sequence[int], draws: np.ndarray) -> np.ndarray:
        """Rows of the numbered draws, (n,) int64: draw k is entry k % size of the permutation of epoch k // size, where
        size is the sum of the `strata`.
        """
        size = sum(strata)
        epochs, indices = np.divmod(draws, size)
        rows = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            if (stream, epoch) not in self._permutations:  # this epoch's and the one before stay in memory
                for key in [key for key in self._permutations if key[0] == stream and key[1] != epoch - 1]:
                    del self._permutations[key]
                self._permutations[(stream, epoch)] = stratified(strata, self._seed, stream, epoch)
            rows[chosen] = self._permutations[(stream, epoch)][indices[chosen]]
        return rows


def draws_before(index: int, count: int, step: int, draws: int) -> int:
    """How often entry `index` of a rotation of `count` came up before `step`; step t takes `draws` entries from t."""
    whole, rest = divmod(step, count)  # over `count` steps every entry comes up equally often
    partial = sum((t + draws - 1 - index) // count - (t - 1 - index) // count for t in range(rest))
    return whole * draws + partial


@functools.lru_cache(maxsize=64)
def weighted_rotation(weights: Tuple[float, ...], draws: int) -> Tuple[np.ndarray, np.ndarray]:
    """A rotation in which each of some entries has its share of the places to within one, but at least one; and of the
    first places, however many, too. In turn comes whoever must come first lest it fall behind by one, of those that are
    not ahead (Tijdeman 1980, "The chairman assignment problem").

    Args:
        weights: of the entries. draws: places that a step takes; step t begins at place t * STRIDE.

    Returns: the entry at each place, <int64>[ROTATION]; and how often each was drawn before step t, of the first
    ROTATION of them, <int64>[ROTATION + 1, entries].
    """
    exact = np.asarray(weights) / sum(weights) * ROTATION
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while counts.sum() < ROTATION:  # a place for whoever lacks most
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > ROTATION:  # one off whoever has most beyond its share, and others besides
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    share, slack = counts / ROTATION, 1.0 / max(2 * len(counts) - 2, 1)
    seen, rotation = np.zeros(len(counts), np.int64), np.empty(ROTATION, np.int64)
    for place in range(ROTATION):
        may_come = share * (place + 1) - seen >= slack - 1e-9
        rotation[place] = np.argmin(np.where(may_come, (seen + 1 - slack) / share, np.inf))
        seen[rotation[place]] += 1
    until = np.cumsum(rotation[:, None] == np.arange(len(counts)), axis=0)  # (ROTATION, entries)
    until = np.concatenate([np.zeros_like(until[:1]), until, counts + until])  # twice round
    starts = np.arange(ROTATION) * STRIDE % ROTATION
    of_step = until[starts + draws % ROTATION] - until[starts] + draws // ROTATION * counts
    drawn = np.cumsum(np.concatenate([np.zeros_like(of_step[:1]), of_step]), axis=0)
    for table in (rotation, drawn):
        table.setflags(write=False)  # all callers share them
    return rotation, drawn


def permutation(size: int, *key: int) -> np.ndarray:
    """A pseudo-random permutation of range(size), (size,) int64, a pure function of `key`.

    Sorted hashes, not NumPy's generator, whose stream may change with its version: a resumed run must find its rows.
    """
    return np.argsort(_random_bits(size, *key), kind="stable")


def stratified(strata: Sequence[int], *key: int) -> np.ndarray:
    """A permutation of range(sum(strata)), (sum(strata),) int64, a pure function of `key`, of which every stretch holds
    nearly its share of each stratum; `permutation` where there is but one.

    The k-th row of a stratum of n rows stands at a random place in the k-th of n equal parts of the whole.
    """
    if len(strata) == 1:
        return permutation(strata[0], *key)
    rows, places, first = [], [], 0
    for number, size in enumerate(strata):
        rows.append(first + permutation(size, *key, number))
        jitter = _random_bits(size, *key, number, 1) / 2.0**64  # without it, ranks would take strata in turn
        places.append((np.arange(size) + jitter) / max(size, 1))
        first += size
    return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]


def _random_bits(size: int, *key: int) -> np.ndarray:
    """(size,) uint64, a pure function of `key`."""
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _scramble(state ^ np.uint64(word % 2**64))
    return _scramble(state + np.arange(size, dtype=np.uint64))


def _scramble(values: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014) of each value, uint64 with wrap-around."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
