import numpy as np
import pytest
from scipy import special, stats

from locmoe_ops.reference.experts import activate, expert_gradients, expert_output, slope
from locmoe_ops.reference.spec import ACTIVATIONS

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
    np.testing.assert_allclose(activate(name, POINTS), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_match_central_differences(name):
    step = 1e-5
    expected = (activate(name, POINTS + step) - activate(name, POINTS - step)) / (2.0 * step)
    # Truncation is of order step^2; rounding of values up to 30 leaves 30 * 1e-16 / step.
    np.testing.assert_allclose(slope(name, POINTS), expected, atol=2e-9)


def test_relu_passes_nothing_back_at_zero():
    assert slope("relu", np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_output_is_the_two_layer_network(make_case):
    _, parameters, ranks = make_case()
    inner = ranks[0].x[0] @ parameters.w1[2] + parameters.b1[2]
    expected = (inner * stats.norm.cdf(inner)) @ parameters.w2[2] + parameters.b2[2]
    np.testing.assert_allclose(expert_output(parameters, "gelu", 2, ranks[0].x[0]), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["x", "w1", "b1", "w2", "b2"])
def test_gradients_match_a_directional_derivative(make_case, name):
    _, parameters, ranks = make_case()
    x, output_gradient = ranks[0].x[0], ranks[0].x[1]
    gradient = getattr(expert_gradients(parameters, "gelu", 1, x, output_gradient), name)
    direction, step = np.random.default_rng(1).normal(size=gradient.shape), 1e-5
    target = x if name == "x" else getattr(parameters, name)[1]
    values = []
    for signed_step in (step, -2.0 * step):
        target += signed_step * direction
        values.append(output_gradient @ expert_output(parameters, "gelu", 1, x))
    # A central difference errs by about step^2 = 1e-10 times the third derivative, and by rounding / step = 1e-11.
    np.testing.assert_allclose((values[0] - values[1]) / (2.0 * step), np.sum(gradient * direction), rtol=1e-7)
