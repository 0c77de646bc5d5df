import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locmoe_ops.capacity.bound import FORMS, angle_probability, minimum_capacity
from locmoe_ops.errors import InputError

HIDDEN_SIZES = (2, 3, 4, 17, 128, 1024, 5120)
DELTAS = (0.0, 1e-9, 1e-6, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.99, 0.999999)
# Below this the reference integral itself leaves the range of float64.
SMALLEST_PROBABILITY = 1e-290


def integral_of_the_density(lowest_angle_cosine, hidden_size):
    """Integral of sin(theta)^(d-2), the density of the angle to a fixed direction, from 0 to acos: Gauss-Legendre in
    panels.
    """
    end = math.acos(lowest_angle_cosine)
    points, weights = np.polynomial.legendre.leggauss(16)
    edges = np.linspace(0.0, end, 2001)  # panels narrower than the decay of the density at d = 5120
    middle, half = (edges[1:] + edges[:-1])[:, None] / 2.0, np.diff(edges)[:, None] / 2.0
    return float((weights * half * np.sin(middle + half * points) ** (hidden_size - 2)).sum())


@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
def test_exact_form_is_the_integral_over_the_caps(hidden_size):
    checked = 0
    for delta in DELTAS:
        expected = integral_of_the_density(delta, hidden_size) / integral_of_the_density(0.0, hidden_size)
        if expected < SMALLEST_PROBABILITY:
            continue
        checked += 1
        assert angle_probability(delta, hidden_size) == pytest.approx(expected, rel=1e-9)
        for experts in (1, 16, 640):
            assert minimum_capacity(delta, hidden_size, experts) == pytest.approx(1.0 / (experts * expected), rel=1e-9)
    assert checked >= 8


@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
def test_all_forms_against_arbitrary_precision(hidden_size):
    with mpmath.workdps(40):
        for delta in DELTAS[1:]:
            square = mpmath.mpf(delta) ** 2
            z = square * hidden_size / (2 - square)
            exact = mpmath.betainc(mpmath.mpf(hidden_size - 1) / 2, mpmath.mpf(1) / 2, 0, 1 - square, regularized=True)
            for form, expected in zip(FORMS, (exact, mpmath.erfc(mpmath.sqrt(z)), mpmath.exp(-z))):
                if expected < SMALLEST_PROBABILITY:
                    continue
                assert angle_probability(delta, hidden_size, form) == pytest.approx(float(expected), rel=1e-9)
                assert minimum_capacity(delta, hidden_size, 16, form) == pytest.approx(
                    float(1 / (16 * expected)), rel=1e-9
                )


@pytest.mark.parametrize(
    "hidden_size, closed_form",
    [
        (2, lambda delta: 2.0 / math.pi * math.acos(delta)),  # two arcs of the circle
        (
            3,
            lambda delta: 1.0 - delta,
        ),  # two caps: on the sphere the area between two heights is proportional to their distance
        (4, lambda delta: 1.0 - 2.0 / math.pi * (math.asin(delta) + delta * math.sqrt(1.0 - delta**2))),
    ],
)
def test_closed_forms_in_low_dimensions(hidden_size, closed_form):
    for delta in (0.0, 1e-8, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        # The closed form at d = 4 subtracts near 1; its own rounding is below 1e-12 of the result here.
        assert angle_probability(delta, hidden_size) == pytest.approx(closed_form(delta), rel=1e-11)


def test_published_values():
    for hidden_size, exact, erfc in ((128, 0.3192, 0.3164), (5120, 0.3174, 0.3173)):
        delta = hidden_size**-0.5
        assert round(angle_probability(delta, hidden_size), 4) == exact
        assert round(angle_probability(delta, hidden_size, "erfc"), 4) == erfc
    capacities = [round(minimum_capacity(0.03, 5120, 16, form), 4) for form in FORMS]
    assert capacities == [1.9648, 1.9664, 0.6265]


def test_share_of_random_tokens():
    tokens = np.random.default_rng(5).standard_normal((40_000, 64))
    cosine = tokens[:, 0] / np.linalg.norm(tokens, axis=1)
    for delta in (0.05, 0.15, 0.3):
        expected = angle_probability(delta, 64)
        deviation = math.sqrt(expected * (1.0 - expected) / len(tokens))
        assert abs((np.abs(cosine) >= delta).mean() - expected) < 5.0 * deviation


cosines_below_one = st.floats(0.0, 0.999)
hidden_sizes = st.integers(2, 8192)


@given(st.tuples(cosines_below_one, cosines_below_one), hidden_sizes, st.sampled_from(FORMS))
def test_larger_delta_needs_more(deltas, hidden_size, form):
    small, large = sorted(deltas)
    # Neighbouring floats may come out in either order by rounding; 1e-12 is far below what the bound is compared at.
    assert angle_probability(large, hidden_size, form) <= angle_probability(small, hidden_size, form) * (1.0 + 1e-12)
    assert minimum_capacity(large, hidden_size, 4, form) >= minimum_capacity(small, hidden_size, 4, form) * (
        1.0 - 1e-12
    )


@given(cosines_below_one, hidden_sizes, st.integers(1, 100), st.sampled_from(FORMS))
def test_more_features_need_more(delta, hidden_size, more, form):
    fewer = minimum_capacity(delta, hidden_size, 4, form)
    assert minimum_capacity(delta, hidden_size + more, 4, form) >= fewer * (1.0 - 1e-11)


@given(cosines_below_one, hidden_sizes, st.integers(1, 1000), st.sampled_from(FORMS))
def test_experts_share_the_bound(delta, hidden_size, experts, form):
    alone = minimum_capacity(delta, hidden_size, 1, form)
    shared = minimum_capacity(delta, hidden_size, experts, form)
    assert shared * experts == pytest.approx(alone, rel=1e-12)
    assert shared >= (1.0 - 1e-12) / experts


@given(hidden_sizes, st.integers(1, 1000), st.sampled_from(FORMS))
def test_at_right_angles_every_token_belongs(hidden_size, experts, form):
    assert angle_probability(0.0, hidden_size, form) == 1.0
    assert minimum_capacity(0.0, hidden_size, experts, form) == 1.0 / experts


@given(cosines_below_one, st.integers(3, 8192))
def test_exponential_form_stays_below_the_exact_bound(delta, hidden_size):
    assert minimum_capacity(delta, hidden_size, 4, "exp") <= minimum_capacity(delta, hidden_size, 4) * (1.0 + 1e-11)


@pytest.mark.parametrize("hidden_size, error, turn", [(4, 0.51, 0.96), (128, 0.106, 0.56), (5120, 0.0171, 0.24)])
def test_asymptotic_form_is_below_the_exact_one_until_delta_is_large(hidden_size, error, turn):
    before = np.linspace(0.0, turn - 0.01, 200)
    ratio = angle_probability(before, hidden_size, "erfc") / angle_probability(before, hidden_size)
    assert ratio.max() <= 1.0 + 1e-12 and ratio.min() >= 1.0 - error
    beyond = turn + 0.01
    assert angle_probability(beyond, hidden_size, "erfc") > angle_probability(beyond, hidden_size)


def test_exponential_form_is_no_bound_in_two_dimensions():
    assert angle_probability(0.85, 2, "exp") < angle_probability(0.85, 2)


@pytest.mark.parametrize("form", FORMS)
def test_arrays_go_element_by_element(form):
    deltas = np.array([[0.0, 0.01], [0.03, 0.5]], np.float32)
    probabilities, capacities = angle_probability(deltas, 5120, form), minimum_capacity(deltas, 5120, 16, form)
    assert probabilities.dtype == capacities.dtype == np.float64
    for index in np.ndindex(2, 2):
        assert probabilities[index] == angle_probability(float(deltas[index]), 5120, form)
        assert capacities[index] == minimum_capacity(float(deltas[index]), 5120, 16, form)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
def test_beyond_float64_the_bound_is_infinite(form):
    assert angle_probability(0.99, 5120, form) == 0.0
    assert minimum_capacity(0.99, 5120, 16, form) == math.inf
    assert isinstance(minimum_capacity(0.5, 128, 16, form), float)


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        ((1.0, 8, 4), "delta is 1.0, expected a cosine in [0, 1)"),
        ((-0.1, 8, 4), "delta is -0.1"),
        ((math.nan, 8, 4), "delta is nan"),
        ((np.array([0.1, 2.0]), 8, 4), "delta is 2.0"),
        ((0.1, 1, 4), "hidden_size is 1, expected an integer of at least 2"),
        ((0.1, 2.5, 4), "hidden_size is 2.5"),
        ((0.1, 8, 0), "experts is 0, expected an integer of at least 1"),
        ((0.1, 8, 4, "gauss"), "form is 'gauss', expected exact, erfc, exp"),
    ],
)
def test_bad_arguments_are_named(arguments, fragment):
    with pytest.raises(InputError) as caught:
        minimum_capacity(*arguments)
    assert fragment in str(caught.value)
