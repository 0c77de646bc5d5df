import numpy as np
import pytest
from scipy import stats

from locmoe_ops.reference.experts import expert_gradients, expert_output


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
