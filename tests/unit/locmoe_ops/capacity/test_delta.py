import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from locmoe_ops.capacity.bound import minimum_capacity
from locmoe_ops.capacity.delta import (
    CosineHistogram,
    as_delta,
    cosines,
    measure_delta,
    own_cosines,
    row_statistics,
    token_pair_cosines,
)
from locmoe_ops.errors import InputError

HALF, ROOT = 0.5, math.sqrt(0.5)
# Columns: two gates. Rows: two sequences of three tokens.
TABLE = np.array(
    [
        [0.9, 0.1],
        [0.2, 0.4],
        [-0.3, 0.1],
        [0.0, 0.8],
        [0.6, 0.5],
        [0.3, 0.2],
    ]
)


def test_cosines_by_hand():
    gates = np.array([[2.0, 0.0], [0.0, 0.1]])
    tokens = np.array([[3.0, 3.0], [-1.0, 0.0], [1.0, math.sqrt(3.0)], [0.0, 0.0]])
    expected = [[ROOT, ROOT], [-1.0, 0.0], [HALF, math.sqrt(0.75)], [0.0, 0.0]]
    np.testing.assert_allclose(cosines(tokens, gates), expected, atol=1e-15)


def test_half_precision_tokens_do_not_overflow():
    tokens = np.array([[60000.0, 0.0], [60000.0, 60000.0]], np.float16)
    found = cosines(tokens, np.array([[1.0, 0.0], [0.0, 0.0]], np.float32))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[1.0, 0.0], [ROOT, 0.0]], atol=1e-15)


@given(arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)), st.floats(0.01, 100.0))
def test_only_the_direction_counts(tokens, scale):
    gates = np.eye(2, 4)
    found = cosines(tokens, gates)
    assert (np.abs(found) <= 1.0 + 1e-12).all()
    np.testing.assert_allclose(cosines(tokens.astype(np.float64) * scale, gates), found, atol=1e-12)


def test_own_cosines_are_those_of_the_experts_a_token_is_sent_to():
    assert own_cosines(TABLE).ravel().tolist() == [0.9, 0.4, 0.1, 0.8, 0.6, 0.3]
    one = np.array([0, 0, 0, 1, 1, 1])
    assert own_cosines(TABLE, one).tolist() == [[0.9], [0.2], [-0.3], [0.8], [0.5], [0.2]]
    two = np.array([[0, 1]] * 6)
    assert own_cosines(TABLE, two).tolist() == TABLE.tolist()


@pytest.mark.parametrize(
    "experts, rows, options, expected",
    [
        (None, 1, {}, 0.9),
        (None, 2, {}, (0.9 + 0.8) / 2),  # each sequence's maximum, averaged
        (None, 1, {"statistic": "mean"}, 3.1 / 6),
        (None, 2, {"statistic": "mean"}, 3.1 / 6),
        (None, 1, {"statistic": "minimum"}, 0.1),
        (None, 2, {"statistic": "minimum"}, 0.2),
        (None, 1, {"statistic": "quantile", "quantile": 0.2}, 0.3),  # the second of six: sorted 0.1 0.3 0.4 0.6 0.8 0.9
        (None, 1, {"statistic": "quantile", "quantile": 0.5}, 0.5),
        (None, 1, {"statistic": "quantile", "quantile": 1.0}, 0.9),
        ([0, 0, 0, 1, 1, 1], 1, {"statistic": "mean"}, (0.9 + 0.2 - 0.3 + 0.8 + 0.5 + 0.2) / 6),
        ([0, 0, 0, 1, 1, 1], 1, {"statistic": "minimum"}, 0.0),  # -0.3: no angle below a right one holds the token
        ([0, 0, 0, 1, 1, 1], 2, {"statistic": "minimum"}, 0.0),  # (-0.3 + 0.2) / 2, cut off after averaging
        ([1, 1, 1, 0, 0, 0], 1, {}, 0.6),
    ],
)
def test_statistics_by_hand(experts, rows, options, expected):
    chosen = None if experts is None else np.array(experts)
    found = measure_delta(TABLE, chosen, rows=rows, **options)
    assert found == pytest.approx(expected, abs=1e-15)
    assert isinstance(found, float)


def test_sequences_can_be_averaged_elsewhere():
    own = np.array([0, 0, 0, 1, 1, 1])
    found = row_statistics(TABLE, own, "minimum", rows=2)
    np.testing.assert_allclose(found, [-0.3, 0.2], atol=1e-15)  # not cut off: that is for the mean
    assert [as_delta(cosine) for cosine in (-0.05, 0.25)] == [0.0, 0.25] and 0.999 < as_delta(1.0) < 1.0


def test_a_token_along_its_gate_still_has_a_bound():
    delta = measure_delta(np.array([[1.0 + 1e-15, 0.0]]))
    assert 0.999 < delta < 1.0
    assert minimum_capacity(delta, 3, 2) > 1e6


def test_uniform_tokens_give_what_order_statistics_say():
    tokens = np.random.default_rng(3).standard_normal((1024, 5120))
    table = cosines(tokens, np.eye(16, 5120))
    scale = math.sqrt(5120)
    # The mean of the largest of 16 standard normals is 1.766 with a deviation of 0.53: 1024 tokens give it to 0.017.
    assert measure_delta(table, statistic="mean") * scale == pytest.approx(1.766, abs=0.085)
    ordered = [measure_delta(table, statistic=name) for name in ("minimum", "mean", "quantile", "maximum")]
    low, typical, high, top = (minimum_capacity(delta, 5120, 16) for delta in ordered)
    assert low < 0.2 and 0.7 < typical < 0.9 and 25 < high < 100
    assert top > 64  # the even load: the maximum of uniform tokens never saves slots under the exact form


@pytest.mark.parametrize(
    "call, fragment",
    [
        (
            lambda: cosines(np.ones((2, 3)), np.ones((2, 4))),
            "tokens are [2, 3] and gate weights [2, 4], expected [T, d] and [n, d]",
        ),
        (lambda: measure_delta(np.ones((0, 3))), "cosines are [0, 3], expected [T, n] with at least one"),
        (lambda: measure_delta(np.array([[math.nan]])), "not finite"),
        (lambda: measure_delta(TABLE, np.zeros(5, int)), "experts are [5], expected a row for each of 6 tokens"),
        (lambda: measure_delta(TABLE, np.array([0, 1, 2, 0, 0, 0])), "experts range from 0 to 2, expected 0 to 1"),
        (lambda: measure_delta(TABLE, np.array([0, -1, 1, 0, 0, 0])), "experts range from -1 to 1"),
        (lambda: measure_delta(TABLE, rows=4), "rows is 4, expected a divisor of the 6 tokens"),
        (
            lambda: measure_delta(TABLE, statistic="median"),
            "statistic is 'median', expected maximum, mean, quantile, minimum",
        ),
        (
            lambda: measure_delta(TABLE, statistic="quantile", quantile=1.5),
            "quantile is 1.5, expected a share in [0, 1]",
        ),
        (lambda: CosineHistogram.of(TABLE, bins=0), "bins is 0"),
        (lambda: CosineHistogram.of(np.array([math.nan])), "not numbers"),
        (lambda: CosineHistogram((1, 2)) + CosineHistogram((1,)), "2 and 1 bins"),
        (
            lambda: token_pair_cosines(TABLE, np.zeros(5, int)),
            "tokens are [6, 2] and experts [5], expected [T, d] and [T]",
        ),
        (lambda: token_pair_cosines(TABLE, np.zeros(6, int), limit=0), "limit is 0"),
    ],
)
def test_bad_arguments_are_named(call, fragment):
    with pytest.raises(InputError) as caught:
        call()
    assert fragment in str(caught.value)


def test_histogram_by_hand():
    values = np.array([[-1.0, -0.6, -0.5], [-0.1, 0.0, 0.49], [0.5, 1.0, 1.0 + 1e-12]])
    histogram = CosineHistogram.of(values, bins=4)
    assert histogram.counts == (2, 2, 2, 3)
    assert histogram.edges.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert histogram.total == 9
    assert (histogram + histogram).counts == (4, 4, 4, 6)
    assert json.loads(json.dumps(histogram.to_dict())) == {"edges": [-1.0, -0.5, 0.0, 0.5, 1.0], "counts": [2, 2, 2, 3]}


@given(arrays(np.float64, st.integers(0, 50), elements=st.floats(-1.0, 1.0)), st.integers(1, 300))
def test_histograms_lose_nothing_and_add_up(values, bins):
    whole = CosineHistogram.of(values, bins)
    assert whole.total == values.size and len(whole.counts) == bins
    assert CosineHistogram.of(values[:7], bins) + CosineHistogram.of(values[7:], bins) == whole


def test_pairs_by_hand():
    tokens = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    pairs = token_pair_cosines(tokens, np.array([0, 1, 0, 1]))
    np.testing.assert_allclose(pairs.within, [ROOT, 0.0], atol=1e-15)  # tokens 0 and 2, 1 and 3
    np.testing.assert_allclose(pairs.across, [0.0, -1.0, ROOT, -ROOT], atol=1e-15)  # 0-1, 0-3, 1-2, 2-3


def test_pairs_of_a_subset():
    tokens = np.random.default_rng(1).standard_normal((200, 6))
    experts = np.arange(200) % 3
    pairs = token_pair_cosines(tokens, experts, limit=20, seed=4)
    assert len(pairs.within) + len(pairs.across) == 20 * 19 // 2
    again, other = token_pair_cosines(tokens, experts, 20, 4), token_pair_cosines(tokens, experts, 20, 5)
    assert np.array_equal(again.across, pairs.across) and np.array_equal(again.within, pairs.within)
    assert not np.array_equal(np.sort(np.concatenate(other)), np.sort(np.concatenate(pairs)))
    possible = cosines(tokens, tokens)
    for values, same in ((pairs.within, True), (pairs.across, False)):
        allowed = possible[(experts[:, None] == experts) == same]
        assert all(np.abs(allowed - value).min() < 1e-12 for value in values)


def test_one_token_has_no_pairs():
    pairs = token_pair_cosines(np.ones((1, 3)), np.zeros(1, int))
    assert pairs.within.size == pairs.across.size == 0
