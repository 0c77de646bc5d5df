"""Rows on the nodes of their tokens' experts: the best there is, of the same rows, on any number of ranks."""

from collections import Counter
from itertools import permutations
from typing import List

import numpy as np
import pytest

from locmoe_ops.topology import Topology
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.known_routes import KnownRoutes, assign_rows
from pangu_sigma.data.loader import BatchLoader, LoaderOptions
from pangu_sigma.data.manifest import SPLITS
from pangu_sigma.data.placement import RowPlacement, place_rows
from pangu_sigma.data.sampler import BatchSampler

NODES, GROUPS = 2, (1, 0, 1)  # of the three domains


def homes(vocab_size: int) -> np.ndarray:
    """<int64>[nodes, G, V]: of three layers, those in which an id is at home."""
    first = np.random.default_rng(3).integers(0, 4, (2, vocab_size))
    return np.stack([first, 3 - first])


def placed(data: PreparedData, kind: str) -> RowPlacement:
    cells = {split: data.cells(split) for split in SPLITS}
    return place_rows(Topology(4, 2), kind, "balanced", data.domains, cells, None)


def sampler_of(data: PreparedData, kind: str, size: int = 12) -> BatchSampler:
    sampler = BatchSampler(data.cells("train"), placed(data, kind), size, 4)
    if kind == "known_routes":
        sampler.routes = KnownRoutes(data, GROUPS, homes(data.vocab_size))
    return sampler


@pytest.mark.parametrize(("rows", "nodes"), [(6, 2), (6, 3), (8, 4), (4, 4), (7, 3), (1, 2)])
def test_no_other_assignment_has_more_tokens_at_home(rows: int, nodes: int) -> None:
    places = -(-rows // nodes)
    for seed in range(5):
        tokens = np.random.default_rng(seed).integers(0, 20, (rows, nodes))
        found = assign_rows(tokens)
        assert np.bincount(found, minlength=nodes).max() <= places
        chosen = permutations(np.repeat(np.arange(nodes), places).tolist(), rows)
        most = max(sum(map(int, tokens[range(rows), nodes_of])) for nodes_of in set(chosen))
        assert tokens[np.arange(rows), found].sum() == most


def test_tokens_at_home_are_counted_one_by_one(data: PreparedData) -> None:
    table = homes(data.vocab_size)
    domain, row = np.array([2, 0, 1, 2], np.int32), np.array([3, 1, 0, 0])
    found = KnownRoutes(data, GROUPS, table).tokens_at_home("train", domain, row)
    for index in range(4):
        (ids,) = data.read("train", int(domain[index]), [int(row[index])])
        for node in range(NODES):
            expected = sum(int(table[node, GROUPS[domain[index]], token_id]) for token_id in ids[:-1])
            assert found[index, node] == expected


def test_a_step_has_the_same_rows_and_more_of_its_tokens_at_home(data: PreparedData) -> None:
    routes = KnownRoutes(data, GROUPS, homes(data.vocab_size))
    at_home: Counter = Counter()
    for step in (0, 1, 7):
        rows = {}
        for kind in ("shuffled", "known_routes"):
            batch = sampler_of(data, kind).batch(step)
            rows[kind] = sorted(zip(batch.domain.tolist(), batch.row.tolist()))
            tokens = routes.tokens_at_home("train", batch.domain, batch.row)
            at_home[kind] += int(tokens[np.arange(12), np.arange(12) // 6].sum())
        assert rows["shuffled"] == rows["known_routes"]
    assert at_home["known_routes"] > at_home["shuffled"]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_parallel_degree_and_any_first_step_read_the_same(data: PreparedData, world: int) -> None:
    """Also after a resume at step 70, of another block of steps than the first."""
    expected = sampler_of(data, "known_routes").batch(70)
    rows: List[np.ndarray] = []
    for rank in range(world):
        loader = BatchLoader(data, sampler_of(data, "known_routes"), rank, world, LoaderOptions(12 // world))
        rows += [batch.ids for batch in loader.step(70)]
        loader.close()
    read = [data.read("train", int(d), [int(r)])[0, :-1] for d, r in zip(expected.domain, expected.row)]
    np.testing.assert_array_equal(np.concatenate(rows), read)


def test_validation_rows_are_placed_too_and_stay_the_same(data: PreparedData) -> None:
    found = {}
    for kind in ("shuffled", "known_routes"):
        loader = BatchLoader(data, sampler_of(data, kind), 0, 1, LoaderOptions(2, eval_rows=12))
        if kind == "known_routes":
            loader.follow(KnownRoutes(data, GROUPS, homes(data.vocab_size)))
        batches = loader.validation()
        loader.close()
        homes_of = np.concatenate([batch.home for batch in batches])
        ids = np.concatenate([batch.ids for batch in batches])
        assert np.bincount(homes_of // 2).tolist() == [6, 6]
        found[kind] = sorted(map(tuple, ids.tolist()))
    assert found["shuffled"] == found["known_routes"]


def test_the_only_node_is_told(data: PreparedData) -> None:
    cells = {split: data.cells(split) for split in SPLITS}
    found = place_rows(Topology(2, 2), "known_routes", "balanced", data.domains, cells, None)
    assert not found.by_routes and "known_routes places nothing on the only node" in found.notes[0]
