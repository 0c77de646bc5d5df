import numpy as np
import pytest
from scipy import special, stats

from locmoe_ops.reference.activations import ACTIVATIONS

POINTS = np.array([-30.0, -3.0, -1.0, -0.1, 0.2, 1.0, 2.5, 30.0])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("gelu", POINTS * stats.norm.cdf(POINTS)),
        ("gelu_tanh", POINTS * special.expit(2.0 * np.sqrt(2.0 / np.pi) * (POINTS + 0.044715 * POINTS**3))),
        ("fast_gelu", POINTS * special.expit(1.702 * POINTS)),
        ("relu", POINTS * (POINTS > 0)),
    ],
)
def test_values_match_scipy(name, expected):
    # atol: 1 + erf(x) and 1 + tanh(x) cancel for large negative x and leave |x| times a rounding error of 1.
    np.testing.assert_allclose(ACTIVATIONS[name].value(POINTS), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_slopes_match_central_differences(name):
    step = 1e-5
    value = ACTIVATIONS[name].value
    expected = (value(POINTS + step) - value(POINTS - step)) / (2.0 * step)
    # Truncation is of order step^2; rounding of values up to 30 leaves 30 * 1e-16 / step.
    np.testing.assert_allclose(ACTIVATIONS[name].slope(POINTS), expected, atol=2e-9)


def test_relu_passes_nothing_back_at_zero():
    assert ACTIVATIONS["relu"].slope(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]
