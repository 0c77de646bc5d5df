import math
from collections import Counter
from typing import Dict, List, Tuple

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.data.placement import place_rows
from pangu_sigma.data.sampler import (
    ROTATION,
    STRIDE,
    BatchSampler,
    draws_before,
    permutation,
    stratified,
    weighted_rotation,
)

ROWS = (11, 5, 24)


def make(
    world: int = 4, share: int = 3, mixing: str = "balanced", placement: str = "shuffled", **options: object
) -> BatchSampler:
    layout = Topology(world, int(options.pop("ranks_per_node", 2)))
    rows = options.pop("rows", ROWS)
    cells = {split: [(count,) for count in rows] for split in ("train", "validation")}  # type: ignore[attr-defined]
    names = [f"domain {number}" for number in range(len(cells["train"]))]
    weights = tuple(options.pop("weights", (0.5, 0.1, 0.4))) if mixing == "weighted" else ()  # type: ignore[arg-type]
    placed = place_rows(layout, placement, mixing, names, cells, None, weights)
    return BatchSampler(cells["train"], placed, world * share, int(options.pop("seed", 1)), mixing, weights)


def pairs(sampler: BatchSampler, step: int) -> List[Tuple[int, int]]:
    batch = sampler.batch(step)
    return list(zip(batch.domain.tolist(), batch.row.tolist()))


def test_permutation_is_one_and_depends_on_every_key() -> None:
    base = permutation(1000, 1, 2, 3)
    assert sorted(base) == list(range(1000))
    for key in [(2, 2, 3), (1, 3, 3), (1, 2, 4)]:
        # two unrelated permutations agree in 1 place on average; 12 has a chance below 1e-9
        assert (permutation(1000, *key) == base).sum() < 12
    assert permutation(5, 1).tolist() == permutation(5, 1).tolist()


def test_permutation_is_that_of_splitmix64() -> None:
    mask = 2**64 - 1

    def scramble(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
        return value ^ value >> 31

    assert scramble(0) == 0xE220A8397B1DCDAF  # first output of the published generator seeded with 0
    state = scramble(scramble(0 ^ 7) ^ (-1 & mask))
    expected = sorted(range(40), key=lambda i: scramble(state + i & mask))
    assert permutation(40, 7, -1).tolist() == expected


@pytest.mark.parametrize(("count", "draws"), [(1, 4), (2, 3), (3, 12), (5, 3), (4, 4)])
def test_draws_before_against_counting(count: int, draws: int) -> None:
    seen: Counter = Counter()
    for step in range(3 * count + 2):
        assert [draws_before(i, count, step, draws) for i in range(count)] == [seen[i] for i in range(count)]
        seen.update((step + q) % count for q in range(draws))


@pytest.mark.parametrize("mixing", ["balanced", "proportional", "weighted"])
@pytest.mark.parametrize("placement", ["shuffled", "domain_by_node"])
def test_any_step_without_the_steps_before(mixing: str, placement: str) -> None:
    walked = make(mixing=mixing, placement=placement)
    steps = [pairs(walked, step) for step in range(30)]
    for step in (29, 0, 13):
        assert pairs(make(mixing=mixing, placement=placement), step) == steps[step]
    assert pairs(make(mixing=mixing, placement=placement, seed=2), 0) != steps[0]


@pytest.mark.parametrize("share", [1, 2, 3, 4])
def test_balanced_walks_each_domain_epoch_by_epoch(share: int) -> None:
    sampler = make(share=share)
    drawn: Dict[int, List[int]] = {0: [], 1: [], 2: []}
    for step in range(40):
        for domain, row in pairs(sampler, step):
            drawn[domain].append(row)
    for domain, rows in drawn.items():
        size = ROWS[domain]
        epochs = [rows[start : start + size] for start in range(0, len(rows), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1])
        assert len(set(epochs[-1])) == len(epochs[-1])
        assert size < 11 or epochs[0] != epochs[1]


@pytest.mark.parametrize(("world", "share"), [(4, 1), (4, 3), (2, 4), (3, 2), (1, 5), (3, 1)])
def test_balanced_shares_over_steps_and_ranks(world: int, share: int) -> None:
    sampler = make(world, share, ranks_per_node=1)
    whole = np.stack([sampler.batch(step).domain.reshape(world, share) for step in range(3)])  # (steps, ranks, rows)
    for rank in range(world):
        assert np.bincount(whole[:, rank].ravel(), minlength=3).tolist() == [share] * 3
        for step in range(3):
            counts = np.bincount(whole[step, rank], minlength=3)
            assert counts.max() - counts.min() <= 1
    for step in range(3):
        counts = np.bincount(whole[step].ravel(), minlength=3)
        assert counts.max() - counts.min() <= 1


def test_proportional_draws_each_row_once_an_epoch() -> None:
    sampler = make(world=2, share=4, mixing="proportional")  # 40 rows, 8 a step
    for epoch in range(3):
        drawn = [pair for step in range(5 * epoch, 5 * epoch + 5) for pair in pairs(sampler, step)]
        assert sorted(drawn) == [(d, r) for d, size in enumerate(ROWS) for r in range(size)]


@pytest.mark.parametrize("mixing", ["balanced", "proportional"])
def test_domain_by_node_keeps_domains_at_home(mixing: str) -> None:
    sampler = make(world=4, share=3, mixing=mixing, placement="domain_by_node", rows=(11, 5, 24, 8))
    seen: List[set] = [set(), set()]
    for step in range(20):
        domains = sampler.batch(step).domain.reshape(4, 3)
        for rank in range(4):
            seen[rank // 2] |= set(domains[rank].tolist())
    assert seen == [{0, 1}, {2, 3}]


def test_nodes_that_share_a_domain_walk_it_together() -> None:
    sampler = make(world=4, share=2, placement="domain_by_node", rows=(11, 5), ranks_per_node=1)
    drawn = [row for step in range(11) for domain, row in pairs(sampler, step) if domain == 0]
    assert sorted(drawn) == sorted(list(range(11)) * 4)  # 11 steps x 4 rows: every row of the domain four times


@pytest.mark.parametrize("mixing", ["balanced", "proportional"])
@pytest.mark.parametrize(("domains", "nodes"), [(2, 2), (4, 2), (2, 4), (3, 3)])
def test_placed_rows_are_those_of_one_group_a_domain(mixing: str, domains: int, nodes: int) -> None:
    """As placement by expert group drew them, one group a domain: every zone by itself, in a loop over its draws."""
    rows, share, ranks = [11, 5, 24, 8][:domains], 3, 2 * nodes
    sampler = make(ranks, share, mixing, "domain_by_node", rows=rows)
    zones = math.gcd(domains, nodes)
    of_zone = [list(range(z * domains // zones, (z + 1) * domains // zones)) for z in range(zones)]
    draws, seen = ranks // zones * share, Counter()  # type: ignore[var-annotated]
    for step in range(15):
        expected = []
        for zone, own in enumerate(of_zone):
            size = sum(rows[d] for d in own)
            for draw in range(draws):
                if mixing == "balanced":
                    domain = own[(step + draw) % len(own)]
                    epoch, place = divmod(seen[domain], rows[domain])
                    expected.append((domain, permutation(rows[domain], 1, domain, epoch)[place]))
                    seen[domain] += 1
                else:
                    epoch, place = divmod(step * draws + draw, size)
                    pooled = permutation(size, 1, -1 - zone * ranks // zones, epoch)[place]
                    for domain in own:
                        if pooled < rows[domain]:
                            break
                        pooled -= rows[domain]
                    expected.append((domain, pooled))
        assert pairs(sampler, step) == expected


def test_strata_are_drawn_in_their_shares_everywhere() -> None:
    strata, stretch = (40, 0, 10, 50), 20
    order = stratified(strata, 7, 3)
    assert sorted(order) == list(range(100))
    assert (order == stratified(strata, 7, 3)).all() and (order != stratified(strata, 7, 4)).any()
    of_row = np.repeat(np.arange(4), strata)[order]
    for first in range(0, 101 - stretch):
        counts = np.bincount(of_row[first : first + stretch], minlength=4)
        # a stretch begins and ends inside a part of each stratum, and its own ends are where rows of others stand
        assert (np.abs(counts - stretch * np.array(strata) / 100) <= 3).all()
    assert stratified((9,), 7, 3).tolist() == permutation(9, 7, 3).tolist()


def test_a_batch_that_ranks_do_not_divide_is_an_error() -> None:
    layout = Topology(4, 2)
    with pytest.raises(InputError, match=r"train\.global_batch_size: found 6"):
        BatchSampler([(11,)], place_rows(layout, "shuffled", "balanced", ["en"], {"train": [(11,)]}, None), 6, 1)


def test_epoch_counts_passes() -> None:
    assert make(world=2, share=4).epoch(5) == 1.0


@pytest.mark.parametrize(
    "weights", [(1.0,), (0.5, 0.5), (0.5, 0.1, 0.4), (0.99999, 0.00001), (0.7, *[0.03] * 10), (1 / 3, 2 / 3)]
)
def test_a_weighted_rotation_has_everybodys_share_in_every_stretch(weights: Tuple[float, ...]) -> None:
    rotation, drawn = weighted_rotation(weights, 24)
    assert len(rotation) == ROTATION
    for index, weight in enumerate(weights):
        seen = np.cumsum(np.concatenate([[0], rotation == index]))
        # To within a place; those of rare entries, which have one at least, come off the others.
        assert abs(seen[-1] - weight * ROTATION) < 2.0 and seen[-1] >= 1
        # Within one of the share from the start to any place (Tijdeman's bound), so within two in any stretch.
        assert np.abs(seen - np.arange(ROTATION + 1) * seen[-1] / ROTATION).max() < 1.0
        assert drawn[-1, index] == 24 * seen[-1]


@pytest.mark.parametrize("draws", [1, 7, ROTATION - 1, ROTATION, 2 * ROTATION + 5])
def test_draws_before_a_step_against_counting(draws: int) -> None:
    rotation, drawn = weighted_rotation((0.5, 0.1, 0.4), draws)
    seen = np.zeros(3, np.int64)
    for step in range(40):
        np.testing.assert_array_equal(drawn[step], seen)
        places = [(step * STRIDE + place) % ROTATION for place in range(draws)]
        seen += np.bincount(rotation[places], minlength=3)


@pytest.mark.parametrize(("world", "share"), [(4, 3), (2, 4), (1, 5)])
def test_weighted_walks_each_domain_epoch_by_epoch_in_its_share(world: int, share: int) -> None:
    sampler, weights = make(world, share, mixing="weighted", ranks_per_node=1), (0.5, 0.1, 0.4)
    drawn: Dict[int, List[int]] = {0: [], 1: [], 2: []}
    by_rank = np.zeros((world, 3))
    steps = 400
    for step in range(steps):
        batch = sampler.batch(step)
        np.add.at(by_rank, (np.repeat(np.arange(world), share), batch.domain), 1)
        for domain, row in pairs(sampler, step):
            drawn[domain].append(row)
    for domain, rows in drawn.items():
        size = ROWS[domain]
        epochs = [rows[start : start + size] for start in range(0, len(rows), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1])
        # Each step is within two rows of the share, and the steps, which begin all over the rotation, cancel.
        assert abs(len(rows) / (steps * world * share) - weights[domain]) < 0.005
    # Steps begin all over the rotation: a rank's own shares are met as well.
    np.testing.assert_allclose(by_rank / by_rank.sum(1, keepdims=True), [weights] * world, atol=0.005)


def test_weights_within_the_domains_of_a_node() -> None:
    sampler = make(4, 5, "weighted", "domain_by_node", rows=(11, 5, 24, 7), weights=(0.3, 0.1, 0.15, 0.45))
    found = np.zeros((2, 4))
    for step in range(300):
        np.add.at(found, (np.repeat([0, 1], 10), sampler.batch(step).domain), 1)
    # Equally many rows to a node; on each its own two domains, three to one.
    np.testing.assert_allclose(found / found.sum(), [[0.375, 0.125, 0, 0], [0, 0, 0.125, 0.375]], atol=0.002)
    assert "data.mixing weighted holds within a node alone" in sampler.placement.notes[0]
    assert "domain 1 12 % (10 %), domain 2 12 % (15 %), domain 3 38 % (45 %)" in sampler.placement.notes[0]
