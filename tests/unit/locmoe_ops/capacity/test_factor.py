import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locmoe_ops.capacity.factor import capacity_by_factor, copies_by_factor, factor_of_slots, share_of_tokens
from locmoe_ops.errors import InputError


@pytest.mark.parametrize(
    "tokens, top_k, experts, factor, slots",
    [
        (512, 1, 8, 1.25, 80),
        (100, 1, 8, 1.0, 13),  # 12.5 rounded up
        (100, 2, 8, 1.0, 25),
        (10, 1, 1, 0.5, 5),
        (10, 1, 4, 8.0, 10),  # more slots than tokens are of no use
        (3, 1, 16, 1.0, 1),  # fewer tokens than experts
        (10, 1, 16, 1e-9, 1),
        (1, 1, 1, 1.0, 1),
    ],
)
def test_capacity_by_hand(tokens, top_k, experts, factor, slots):
    assert capacity_by_factor(tokens, top_k, experts, factor) == slots


@pytest.mark.parametrize(
    "tokens, experts, factor, slots",
    [
        (100, 10, 1.1, 11),  # 1.1 * 100 / 10 is 11.000000000000002 in floating point
        (1000, 1, 0.1 + 0.2, 300),  # the sum is 0.30000000000000004
        (300, 1, 1.0 / 3.0, 100),
        (900, 3, 2.0 / 3.0, 200),
    ],
)
def test_rounding_of_the_factor_does_not_add_a_slot(tokens, experts, factor, slots):
    assert capacity_by_factor(tokens, 1, experts, factor) == slots


@given(
    tokens=st.integers(1, 100_000),
    top_k=st.integers(1, 4),
    experts=st.integers(1, 640),
    hundredths=st.integers(1, 1000),
)
def test_decimal_factors_are_exact(tokens, top_k, experts, hundredths):
    exact = math.ceil(Fraction(hundredths, 100) * top_k * tokens / experts)
    assert capacity_by_factor(tokens, top_k, experts, hundredths / 100) == min(tokens, exact)


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        ((0, 1, 1, 1.0), "tokens is 0, expected an integer of at least 1"),
        ((1, 0, 1, 1.0), "top_k is 0"),
        ((1, 1, 0, 1.0), "experts_in_play is 0"),
        ((1, 1, 1.5, 1.0), "experts_in_play is 1.5"),
        ((1, 1, 1, 0.0), "factor is 0.0, expected a finite number above 0"),
        ((1, 1, 1, -1.0), "factor is -1.0"),
        ((1, 1, 1, math.inf), "factor is inf"),
        ((1, 1, 1, math.nan), "factor is nan"),
    ],
)
def test_bad_arguments_are_named(arguments, fragment):
    with pytest.raises(InputError) as caught:
        capacity_by_factor(*arguments)
    assert fragment in str(caught.value)


@given(tokens=st.integers(1, 250_000), top_k=st.integers(1, 4), experts=st.integers(1, 640), data=st.data())
def test_factor_of_slots_asks_for_these_slots(tokens, top_k, experts, data):
    slots = data.draw(st.integers(1, tokens))
    factor = factor_of_slots(slots, tokens, top_k, experts)
    assert factor == pytest.approx(slots / (top_k * tokens / experts))
    assert capacity_by_factor(tokens, top_k, experts, factor) == slots


@pytest.mark.parametrize(("top_k", "experts", "held"), [(1, 8, 2), (2, 4, 2), (4, 8, 4), (8, 64, 8), (3, 3, 1)])
def test_share_of_tokens_with_a_choice_on_a_node(top_k, experts, held):
    expected = 1.0 - math.comb(experts - held, top_k) / math.comb(experts, top_k)
    assert share_of_tokens(top_k, experts, held) == pytest.approx(expected)


@pytest.mark.parametrize(("top_k", "held", "expected"), [(4, 0.1, 0.1), (4, 0.0, 0.0), (2, 9.0, 1.0)])
def test_no_more_tokens_than_assignments_or_than_there_are(top_k, held, expected):
    assert share_of_tokens(top_k, 4, held) == expected


@pytest.mark.parametrize(
    ("share", "factor", "expected"), [(0.3, 1.0, 3), (0.25, 1.0, 3), (0.3, 1.25, 4), (0.9, 2.0, 10), (0.0, 1.0, 1)]
)
def test_copies_of_ten_tokens(share, factor, expected):
    assert copies_by_factor(10, share, factor) == expected


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_of_copies_is_a_finite_number_above_zero(factor):
    with pytest.raises(InputError, match="factor is .*, expected a finite number above 0"):
        copies_by_factor(10, 0.5, factor)


def test_more_slots_than_tokens_have_no_factor():
    with pytest.raises(InputError, match="slots is 5, expected at most the 4 tokens"):
        factor_of_slots(5, 4, 1, 2)
