"""Sums over ranks against exact fractions, and against what older versions got where nothing wraps."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.runtime.host_sum import from_limbs, to_limbs

NAN, INF = math.nan, math.inf
NUMBERS = st.floats(-1e41, 1e41) | st.integers(-(2**60), 2**60).map(float) | st.floats(-1e4, 1e4)


def total(*ranks):
    """As an all-reduce of int64 adds them up."""
    return from_limbs(sum(to_limbs(np.array(values, np.float64)) for values in ranks)).tolist()


@given(st.lists(NUMBERS, min_size=1, max_size=12), st.randoms())
def test_the_sum_is_right_to_the_bit_whatever_the_order_and_number_of_ranks(values, random):
    exact = sum(
        Fraction(round(Fraction(value) * 2**20), 2**20) for value in values
    )  # halves go to even, as np.rint has it
    shuffled = [*values, *[0.0] * random.randrange(9)]  # ranks that have nothing to add
    random.shuffle(shuffled)
    assert total(*([value] for value in shuffled)) == [float(exact)]


def test_ordinary_numbers_keep_the_bits_that_they_had():
    """One int64 of 2**-20, as it was."""
    generator = np.random.default_rng(1)
    ranks = generator.normal(size=(4, 500)) * 10.0 ** generator.integers(-6, 9, (4, 500))
    before = np.rint(ranks * 2.0**20).astype(np.int64).sum(0) / 2.0**20
    assert total(*ranks) == before.tolist()


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([NAN, 1.0], NAN),
        ([1.0, INF], INF),
        ([-INF, 1e30], -INF),
        ([INF, -INF], NAN),
        ([INF, NAN], NAN),
        ([INF] * 8, INF),
        ([1e300, 0.0], INF),
        ([-1e300] * 3, -INF),
        ([2.0**139], INF),
        ([3.4e38] * 64, 3.4e38 * 64),
        ([-3.4e38, 3.4e38], 0.0),
        ([9e12] * 4, 3.6e13),
        ([-69810262081.0 * 1e6] * 2, -69810262081.0 * 2e6),
    ],
)
def test_nothing_wraps(ranks, expected):
    (found,) = total(*([value] for value in ranks))
    assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_as_many_ranks_as_are_promised_do_not_wrap():
    """A million ranks at the limit, added up by multiplication."""
    values = np.array([2.0**138.999, -(2.0**138.999), NAN, INF])
    found = from_limbs(to_limbs(values) * (2**20 - 1))
    assert found[:2] == pytest.approx(values[:2] * (2**20 - 1), rel=1e-15) and math.isnan(found[2]) and found[3] == INF
