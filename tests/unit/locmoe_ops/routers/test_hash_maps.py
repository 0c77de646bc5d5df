import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from locmoe_ops.routers.hash_maps import (
    NodesOfIds,
    cooccurrence_hash_map,
    frequency_hash_map,
    layer_hash_tables,
    uniform_hash_map,
)


@settings(max_examples=100, deadline=None)
@given(vocab_size=st.integers(1, 300), experts=st.integers(1, 20), seed=st.integers(0, 2**64))
def test_uniform_shares_differ_by_at_most_one_id(vocab_size, experts, seed):
    table = uniform_hash_map(vocab_size, experts, seed)
    shares = np.bincount(table, minlength=experts)
    assert table.shape == (vocab_size,) and table.dtype == np.int32
    assert len(shares) == experts and shares.max() - shares.min() <= 1


def test_uniform_map_follows_its_seed_and_is_not_the_plain_deal():
    first, again, other = (uniform_hash_map(1000, 8, seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    # Independent maps agree on 1/8 of the ids, give or take sqrt(1000 / 8 * 7 / 8) = 10; 6 of these are allowed for.
    assert abs((first == other).sum() - 125) < 63
    assert abs((first == np.arange(1000) % 8).sum() - 125) < 63


def test_frequency_map_by_hand():
    # Shares of 23/3: 9 fits nowhere; 7 into one of the others; 4 and 3 into the third only: 9, 7, 7.
    table = frequency_hash_map(np.array([3, 9, 4, 7]), 3, seed=0)
    assert table[0] == table[2] and len({table[0], table[1], table[3]}) == 3


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(0, 1000), min_size=1, max_size=200),
    experts=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_frequency_loads_differ_by_one_id_at_most(counts, experts, seed):
    counts = np.array(counts)
    table = frequency_hash_map(counts, experts, seed)
    loads = np.bincount(table, weights=counts, minlength=experts)
    assert table.dtype == np.int32 and len(loads) == experts
    # An id that exceeds all rooms takes the largest, r: the expert is then over by count - r, and none stays under by
    # more than r.
    assert loads.max() - loads.min() <= counts.max()


def test_zipf_text_is_balanced_better_by_frequency_than_by_ids():
    counts = (1e6 / np.arange(1, 5001)).astype(int)
    by_frequency, by_ids = frequency_hash_map(counts, 8, 0), uniform_hash_map(5000, 8, 0)
    loads = [np.bincount(table, weights=counts, minlength=8) for table in (by_frequency, by_ids)]
    # The first id alone is 11 % of the text, under an expert's 12.5 %: rare ids fill all shares up to small counts.
    assert loads[0].max() / loads[0].mean() < 1.001 < loads[1].max() / loads[1].mean()


def test_frequency_maps_of_two_seeds_agree_no_more_than_chance():
    """By share of text, over 100 pairs of maps: an expected 1/8, as labels are exchangeable. One pair deviates by about
    0.33 times the norm of the frequencies, 0.17, or 0.056."""
    counts = (1e6 / np.arange(1, 1001)).astype(int)
    maps = [frequency_hash_map(counts, 8, seed) for seed in range(200)]
    agreed = [counts[one == other].sum() / counts.sum() for one, other in zip(maps[::2], maps[1::2])]
    assert abs(np.mean(agreed) - 1 / 8) < 5 * 0.056 / np.sqrt(100)


def test_ids_that_never_occur_are_dealt_out_evenly():
    counts = np.zeros(103, np.int64)
    counts[:3] = [100, 10, 1]
    unseen = np.bincount(frequency_hash_map(counts, 4, 0)[3:], minlength=4)
    assert unseen.tolist() == [25, 25, 25, 25]


def test_equal_counts_come_in_seeded_order():
    maps = [frequency_hash_map(np.full(64, 5), 4, seed).tolist() for seed in (1, 1, 2)]
    assert maps[0] == maps[1] != maps[2]
    assert np.bincount(maps[0]).tolist() == [16] * 4


@pytest.mark.parametrize("kind", ["uniform", "frequency"])
def test_layer_tables_differ_by_layer_group_and_seed_and_repeat(kind):
    counts = np.full(400, 3)
    first = layer_hash_tables(kind, 3, 4, 400, layer=0, seed=7, counts=counts)
    assert first.shape == (3, 400) and first.dtype == np.int32
    assert all((np.bincount(row, minlength=4) == 100).all() for row in first)
    assert (first == layer_hash_tables(kind, 3, 4, 400, layer=0, seed=7, counts=counts)).all()
    others = [layer_hash_tables(kind, 3, 4, 400, layer, seed, counts) for layer, seed in ((1, 7), (0, 8))]
    maps = np.concatenate([first, *others])
    for i in range(9):
        for j in range(i):
            # Independent maps agree on 100 of 400 ids, give or take sqrt(400 / 4 * 3 / 4) = 9; 6 of these allowed for.
            assert abs((maps[i] == maps[j]).sum() - 100) < 55


@settings(max_examples=100, deadline=None)
@given(vocab_size=st.integers(1, 200), experts=st.integers(1, 20), top_k=st.integers(1, 20), seed=st.integers(0, 2**64))
def test_several_experts_an_id_are_different_ones_in_equal_shares(vocab_size, experts, top_k, seed):
    top_k = min(top_k, experts)
    table = uniform_hash_map(vocab_size, experts, seed, top_k).reshape(vocab_size, top_k)
    shares = np.bincount(table.ravel(), minlength=experts)
    assert len(shares) == experts and shares.max() - shares.min() <= 1
    assert all(len(set(row)) == top_k for row in table.tolist())


@pytest.mark.parametrize("kind", ["uniform", "frequency"])
def test_any_experts_may_come_together_and_layers_differ(kind):
    """28 pairs of 8 experts, 2,800 ids: 100 ids a pair, give or take sqrt(100) = 10 (less, for experts have equal
    shares); 6 of these are allowed for. Two layers agree on a pair of both experts for 100 ids likewise.
    """
    first, other = (
        np.sort(layer_hash_tables(kind, 1, 8, 2800, at, 5, np.ones(2800, int), top_k=2)[0]) for at in (0, 1)
    )
    pairs = np.bincount(first[:, 0] * 8 + first[:, 1], minlength=64)
    assert (pairs > 0).sum() == 28 and abs(pairs[pairs > 0] - 100).max() < 60
    assert abs((first == other).all(1).sum() - 100) < 60


def test_text_is_shared_out_equally_among_several_experts_an_id():
    counts = (1e6 / np.arange(1, 5001)).astype(int)
    table = frequency_hash_map(counts, 8, 0, top_k=3)
    assert (np.diff(np.sort(table), axis=1) > 0).all()
    loads = np.bincount(table.ravel(), weights=np.repeat(counts, 3), minlength=8)
    assert loads.max() / loads.mean() < 1.001  # as of one expert an id, see above


def test_map_of_a_group_does_not_depend_on_the_number_of_groups():
    few, many = (layer_hash_tables("uniform", groups, 4, 50, layer=2, seed=1) for groups in (2, 5))
    assert few.tolist() == many[:2].tolist()


def test_counts_per_group():
    counts = np.array([[8, 1, 1, 1, 1, 4], [1, 1, 1, 1, 4, 8]])
    tables = layer_hash_tables("frequency", 2, 2, 6, layer=0, seed=0, counts=counts)
    for table, own in zip(tables, counts):
        assert np.bincount(table, weights=own).tolist() == [8.0, 8.0]


COUNTS = np.ones(4, int)


@pytest.mark.parametrize(
    "build, fragment",
    [
        (lambda: uniform_hash_map(0, 2, 0), "vocab_size is 0, expected an integer of at least 1"),
        (lambda: uniform_hash_map(4, 0, 0), "experts is 0"),
        (lambda: uniform_hash_map(4, 2.5, 0), "experts is 2.5"),
        (lambda: uniform_hash_map(4, 2, -1), "seed is -1"),
        (lambda: frequency_hash_map(np.ones((2, 2), int), 2, 0), "shape (2, 2)"),
        (lambda: frequency_hash_map(np.zeros(0, int), 2, 0), "shape (0,)"),
        (lambda: frequency_hash_map(np.ones(4), 2, 0), "type float64"),
        (lambda: frequency_hash_map(np.array([1, -2]), 2, 0), "down to -2"),
        (lambda: frequency_hash_map(COUNTS, 0, 0), "experts is 0"),
        (lambda: uniform_hash_map(4, 2, 0, 0), "top_k is 0, expected an integer of at least 1"),
        (lambda: uniform_hash_map(4, 2, 0, 3), "top_k is 3, expected at most 2, the experts to choose from"),
        (lambda: frequency_hash_map(COUNTS, 2, 0, 3), "top_k is 3, expected at most 2"),
        (lambda: layer_hash_tables("random", 1, 2, 4, 0, 0), "kind is 'random', expected one of uniform, frequency"),
        (lambda: layer_hash_tables("uniform", 0, 2, 4, 0, 0), "num_groups is 0"),
        (lambda: layer_hash_tables("uniform", 1, 2, 4, -1, 0), "layer is -1"),
        (lambda: layer_hash_tables("uniform", 1, 2, 4, 0, -1), "seed is -1"),
        (lambda: layer_hash_tables("frequency", 1, 2, 4, 0, 0), "counts are missing"),
        (lambda: layer_hash_tables("frequency", 1, 2, 5, 0, 0, COUNTS), "shape (4,), expected (5,) or (1, 5)"),
    ],
)
def test_bad_arguments_are_named(build, fragment):
    with pytest.raises(InputError) as caught:
        build()
    assert fragment in str(caught.value)


def test_cooccurrence_map_stays_on_the_node_and_balances_its_experts():
    rng = np.random.default_rng(0)
    counts, id_nodes, expert_nodes = rng.integers(0, 100, 200), rng.integers(0, 2, 200), np.array([1, 0, 0, 1, 1])
    table = cooccurrence_hash_map(counts, id_nodes, expert_nodes, np.random.SeedSequence(3))
    assert (expert_nodes[table] == id_nodes).all()
    for node in (0, 1):
        loads = np.bincount(table, counts, minlength=5)[expert_nodes == node]
        assert loads.max() - loads.min() <= counts.max()  # as of the frequency map


def test_cooccurrence_tables_of_layers_share_nodes_but_not_experts():
    ids = np.random.default_rng(0).integers(0, 2, (2, 300))
    nodes = NodesOfIds(ids, np.array([[0, 1, 0, 1], [1, 1, 0, 0]]))
    counts = np.ones((2, 300), np.int64)
    tables = [layer_hash_tables("cooccurrence", 2, 4, 300, layer, 1, counts, nodes) for layer in (0, 1, 0)]
    for table in tables:
        assert (np.take_along_axis(nodes.experts, table, 1) == ids).all()
    assert (tables[0] == tables[2]).all()
    assert 0.3 < (tables[0] == tables[1]).mean() < 0.7  # a half by chance


@pytest.mark.parametrize(
    "nodes, expected",
    [
        (None, "nodes of ids and of experts are none"),
        (NodesOfIds(np.zeros((1, 8), int), np.zeros((1, 3), int)), r"are \(1, 8\) and \(1, 3\), expected .*\(1, 4\)"),
        (NodesOfIds(np.ones((1, 8), int), np.zeros((1, 4), int)), "node 1 has 8 ids and no expert"),
    ],
)
def test_nodes_that_do_not_fit_are_named(nodes, expected):
    with pytest.raises(InputError, match=expected):
        layer_hash_tables("cooccurrence", 1, 4, 8, 0, 1, np.ones(8, np.int64), nodes)
