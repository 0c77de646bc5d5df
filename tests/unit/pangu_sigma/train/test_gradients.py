import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.tensor_parallel import marked
from locmoe_ops.topology import Topology
from pangu_sigma.train import gradients
from pangu_sigma.train.gradients import BucketedAllReduce, GradientExchange, plan_buckets


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([], []),
        ([5], [(0, 1)]),
        ([50], [(0, 1)]),  # larger than a bucket: alone in its own
        ([4, 6], [(0, 2)]),  # fills one exactly
        ([4, 7], [(0, 1), (1, 2)]),
        ([50, 1, 1], [(0, 1), (1, 3)]),
        ([1, 50, 1], [(0, 1), (1, 2), (2, 3)]),
        ([3, 3, 3, 3, 3], [(0, 3), (3, 5)]),
    ],
)
def test_buckets(sizes, expected):
    assert plan_buckets(sizes, limit=10) == expected


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 40))
def test_buckets_hold_everything_once_and_no_more_than_fits(sizes, limit):
    buckets = plan_buckets(sizes, limit)
    assert [i for start, end in buckets for i in range(start, end)] == list(range(len(sizes)))
    for start, end in buckets:
        assert end == start + 1 or sum(sizes[start:end]) <= limit
    for (start, end), (_, next_end) in zip(buckets, buckets[1:]):
        assert sum(sizes[start:end]) + sizes[end] > limit and next_end > end  # none could have taken one more


@pytest.fixture
def small_buckets(monkeypatch):
    monkeypatch.setattr(gradients, "plan_buckets", functools.partial(plan_buckets, limit=10))


@pytest.fixture
def alone():
    return create_collectives("local", Topology(1, 1), 0)


SHAPES = [(2, 3), (4,), (), (3, 2, 2), (1, 5)]


def random_tensors():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def test_alone_nothing_changes(alone, small_buckets):
    tensors = random_tensors()
    reduced = BucketedAllReduce(SHAPES, alone, "dp", "tag")(tuple(Tensor(tensor) for tensor in tensors))
    for found, expected in zip(reduced, tensors):
        np.testing.assert_array_equal(found.asnumpy(), expected)


def test_buckets_are_summed_and_taken_apart_again(networks, small_buckets):
    """Two ranks that hold the same: every tensor comes back doubled, in its own place and shape."""
    cell = BucketedAllReduce(SHAPES, networks.TwinCollectives(0, Topology(2, 2)), "dp", "tag")
    assert cell.buckets == [(0, 2), (2, 3), (3, 4), (4, 5)]
    tensors = random_tensors()
    for found, expected in zip(cell(tuple(Tensor(tensor) for tensor in tensors)), tensors):
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.asnumpy(), 2.0 * expected)


def test_alone_the_exchange_measures_and_changes_nothing(alone, make_parameters, random_arrays):
    arrays, statistics = random_arrays(0), np.arange(7, dtype=np.float32)
    exchange = GradientExchange(make_parameters(), 7, alone)
    summed, sums, squares = exchange(tuple(Tensor(array) for array in arrays), Tensor(statistics))
    for found, expected in zip(summed, arrays):
        np.testing.assert_array_equal(found.asnumpy(), expected)
    np.testing.assert_array_equal(sums.asnumpy(), statistics)
    # 72 squares of order 1, summed in float32.
    assert float(squares.asnumpy()) == pytest.approx(
        sum(np.sum(array.astype(np.float64) ** 2) for array in arrays), rel=1e-6
    )


@pytest.mark.parametrize(
    "expert, dense_factor, expert_factor, copies",
    [
        (1, 2.0, 2.0, 1),  # both ranks hold all experts: their gradients add up, and each counts once
        (
            2,
            2.0,
            1.0,
            2,
        ),  # each holds half of the experts: nothing to add, and the other half's squares come from the other rank
    ],
)
def test_two_ranks_count_every_parameter_once(
    networks, make_parameters, random_arrays, expert, dense_factor, expert_factor, copies
):
    arrays = random_arrays(0)
    exchange = GradientExchange(make_parameters(), 3, networks.TwinCollectives(0, Topology(2, 2, expert)))
    summed, sums, squares = exchange(tuple(Tensor(array) for array in arrays), Tensor(np.ones(3, np.float32)))
    factors = [dense_factor] * 4 + [expert_factor] * 2
    for found, array, factor in zip(summed, arrays, factors):
        np.testing.assert_array_equal(found.asnumpy(), factor * array)
    np.testing.assert_array_equal(sums.asnumpy(), [2.0, 2.0, 2.0])
    norms = [np.sum((factor * array.astype(np.float64)) ** 2) for array, factor in zip(arrays, factors)]
    assert float(squares.asnumpy()) == pytest.approx(sum(norms[:4]) + copies * sum(norms[4:]), rel=1e-6)


def test_a_tensor_parallel_group_counts_every_parameter_once(networks, make_parameters, random_arrays):
    """A part's other half is on the other rank; what both hold whole counts once, and nothing is summed but squares."""
    arrays, parameters = random_arrays(0), make_parameters()
    split = [0, 1, 4]
    for i in split:
        marked(parameters[i], ShardSpec(0, 0, 2))
    exchange = GradientExchange(parameters, 3, networks.TwinCollectives(0, Topology(2, 2, 1, 2)))
    summed, sums, squares = exchange(tuple(Tensor(array) for array in arrays), Tensor(np.ones(3, np.float32)))
    for found, array in zip(summed, arrays):
        np.testing.assert_array_equal(found.asnumpy(), array)
    np.testing.assert_array_equal(sums.asnumpy(), np.ones(3))
    expected = sum((2 if i in split else 1) * np.sum(array.astype(np.float64) ** 2) for i, array in enumerate(arrays))
    assert float(squares.asnumpy()) == pytest.approx(expected, rel=1e-6)


def test_a_network_without_experts(alone, make_parameters, random_arrays):
    arrays = random_arrays(0)[:4]
    exchange = GradientExchange(make_parameters()[:4], 2, alone)
    summed, _, squares = exchange(tuple(Tensor(array) for array in arrays), Tensor(np.ones(2, np.float32)))
    assert len(summed) == 4
    assert float(squares.asnumpy()) == pytest.approx(
        sum(np.sum(array.astype(np.float64) ** 2) for array in arrays), rel=1e-6
    )
