import math

import numpy as np
import pytest
from scipy import special

from mindspore import Tensor, jit

from locmoe_ops.errors import InputError
from locmoe_ops.functions import activation, sortable_bits

pytestmark = pytest.mark.compiles

pytestmark = pytest.mark.usefixtures("graph_mode")

X = np.concatenate([np.linspace(-12, 12, 481), [-80.0, 80.0]]).astype(np.float32)
U = math.sqrt(2 / math.pi)


def gelu(x):
    return x * special.ndtr(x), special.ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_tanh(x):
    tanh = np.tanh(U * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * U * (1 + 3 * 0.044715 * x**2)


def fast_gelu(x):
    gate = special.expit(1.702 * x)
    return x * gate, gate + 1.702 * x * gate * (1 - gate)


def relu(x):
    return np.maximum(x, 0), (x > 0).astype(float)


@pytest.mark.parametrize(
    "name, closed_form", [("gelu", gelu), ("gelu_tanh", gelu_tanh), ("fast_gelu", fast_gelu), ("relu", relu)]
)
def test_value_and_slope_match_the_closed_form(pullback, name, closed_form):
    (found,), (slope,), _ = pullback(activation(name), [X], [np.ones_like(X)])
    value, expected_slope = closed_form(X.astype(np.float64))
    # float32 rounds to 6e-8 of the largest term in 1 + erf or 1 + tanh, which |x| <= 12 then scales.
    np.testing.assert_allclose(found, value, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-6, atol=4e-6)


def test_unknown_name_is_told_with_the_choices():
    with pytest.raises(InputError, match="'swish', expected one of gelu, gelu_tanh, fast_gelu, relu"):
        activation("swish")


def test_sortable_bits_are_those_of_the_number():
    """Every binade, its first numbers and its last; neighbours; zeros; below zero the negative of the pattern."""
    powers = np.exp2(np.arange(-126, 127)).astype(np.float32)
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [powers, np.nextafter(powers, np.float32(np.inf)), np.nextafter(powers[1:], np.float32(0)), rng.random(999)]
        + [np.exp2(rng.uniform(-126, 127, 2000)), [0.0, -0.0]]
    ).astype(np.float32)
    found = jit(sortable_bits)(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(found, np.where(x == 0, 0, x.view(np.int32)))
    np.testing.assert_array_equal(jit(sortable_bits)(Tensor(-x)).asnumpy(), -found)


def test_sortable_bits_of_the_largest_numbers_keep_the_order():
    x = np.sort(np.exp2(np.random.default_rng(0).uniform(125, 128, 1000))).astype(np.float32)
    found = jit(sortable_bits)(Tensor(x)).asnumpy().astype(np.int64)
    assert np.array_equal(np.sign(np.diff(found)), np.sign(np.diff(x)))
