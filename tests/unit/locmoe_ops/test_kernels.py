"""Each operation in both forms: for CPU, and as on Ascend. Values and gradients of both against the closed form in
float64; of the two operators of Ascend's that have no kernel on CPU, how they are asked.
"""

import math
from dataclasses import fields

import numpy as np
import pytest
from scipy import special

from mindspore import Tensor, nn

from locmoe_ops.errors import InputError
from locmoe_ops.kernels import ASCEND, CPU, KernelSet, kernel_set

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures("graph_mode")]

X = np.concatenate([np.linspace(-12, 12, 481), [-80.0, 80.0]]).astype(np.float32)
U = math.sqrt(2 / math.pi)
BOTH = pytest.mark.parametrize("kernels", [CPU, ASCEND], ids=lambda one: one.name)


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


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "fast_gelu": fast_gelu, "relu": relu}


@pytest.mark.parametrize(
    ("kernels", "name"),
    [
        (kernels, name)
        for kernels in (CPU, ASCEND)
        for name in ACTIVATIONS
        if (kernels.name, name) != ("ascend", "gelu")
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_activations_match_the_closed_form(pullback, kernels, name):
    (found,), (slope,), _ = pullback(Applied(kernels.activation(name)), [X], [np.ones_like(X)])
    value, expected_slope = ACTIVATIONS[name](X.astype(np.float64))
    # float32 rounds to 6e-8 of the largest term in 1 + erf or 1 + tanh, which |x| <= 12 then scales.
    np.testing.assert_allclose(found, value, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-6, atol=4e-6)


class Applied(nn.Cell):
    """An operation as a Cell, be it a Cell or a primitive; of several outputs the first."""

    def __init__(self, operation, first=False):
        super().__init__()
        self.operation = operation
        self.first = first

    def construct(self, *inputs):
        found = self.operation(*inputs)
        return found[0] if self.first else found


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e-3])  # 1e-3: a variance below epsilon
def test_normalisation_matches_the_closed_form(pullback, size):
    x, gamma, beta, dy = size * drawn(7, 16), drawn(16, seed=1), drawn(16, seed=2), drawn(7, 16, seed=3)
    (found,), gradients, _ = pullback(Applied(CPU.normalise(1e-5), first=True), [x, gamma, beta], [dy])
    wide = x.astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    scale = 1.0 / np.sqrt(np.mean(centred**2, 1, keepdims=True) + 1e-5)
    rows, slope = centred * scale, dy * gamma
    of_x = (slope - slope.mean(1, keepdims=True) - rows * np.mean(slope * rows, 1, keepdims=True)) * scale
    # float32: sums of at most 16 products of order 1, then a scale; relative to the largest.
    for one, expected in zip([found, *gradients], [rows * gamma + beta, of_x, np.sum(dy * rows, 0), dy.sum(0)]):
        np.testing.assert_allclose(one, expected, atol=2e-6 * np.abs(expected).max())


def test_operators_without_a_kernel_here_are_asked_as_documented(pynative_mode):
    """LayerNormExt(input, normalized_shape, weight, bias, eps), LayerNormGradExt(dy, x, normalized_shape, mean,
    variance, gamma, beta) and GeluExt(input, approximate), of mindspore.ops.
    """
    x, gamma, beta = drawn(7, 16), drawn(16, seed=1), drawn(16, seed=2)

    def layer_norm(rows, shape, weight, bias, eps):
        rows, axes = rows.asnumpy(), tuple(range(rows.ndim - len(shape), rows.ndim))
        centred = rows - rows.mean(axes, keepdims=True)
        scale = 1.0 / np.sqrt(np.mean(centred**2, axes, keepdims=True) + eps)
        mean = Tensor(rows.mean(axes, keepdims=True))
        return Tensor(centred * scale * weight.asnumpy() + bias.asnumpy()), mean, Tensor(scale)

    def layer_norm_gradient(dy, rows, shape, mean, scale, weight, bias):
        assert shape == (16,) and bias is inputs[2]
        dy, normed = dy.asnumpy(), (rows.asnumpy() - mean.asnumpy()) * scale.asnumpy()
        slope = dy * weight.asnumpy()
        of_rows = slope - slope.mean(1, keepdims=True) - normed * np.mean(slope * normed, 1, keepdims=True)
        return of_rows * scale.asnumpy(), np.sum(dy * normed, 0), dy.sum(0)

    norm, expected = ASCEND.normalise(1e-5), CPU.normalise(1e-5)
    norm.norm.operator = layer_norm
    inputs = [Tensor(each) for each in (x, gamma, beta)]
    # float32: numbers of order 1, from sums of 16.
    np.testing.assert_allclose(norm(*inputs)[0].asnumpy(), expected(*inputs)[0].asnumpy(), atol=3e-6)
    norm.backward.norm, norm.backward.gradient = layer_norm, layer_norm_gradient
    dy = Tensor(drawn(7, 16, seed=3))
    wanted = expected.backward(inputs[0], inputs[1], layer_norm(inputs[0], (16,), *inputs[1:], 1e-5)[1], dy)
    for one, other in zip(norm.backward(*inputs, dy), wanted):
        np.testing.assert_allclose(np.asarray(one), other.asnumpy(), atol=1e-5)  # likewise
    asked = []
    activation = ASCEND.activation("gelu")
    activation.gelu = lambda *given: asked.append(given) or given[0]
    activation(inputs[0])
    assert asked == [(inputs[0], "none")]  # exact, not by tanh


@BOTH
def test_softmax_matches_the_closed_form(pullback, kernels):
    scores, dy = 5.0 * drawn(6, 9), drawn(6, 9, seed=1)
    (found,), (gradient,), _ = pullback(kernels.softmax_rows(), [scores], [dy])
    odds = np.exp(scores.astype(np.float64) - scores.max(1, keepdims=True))
    expected = odds / odds.sum(1, keepdims=True)
    # float32, of numbers below 1 and sums of nine.
    np.testing.assert_allclose(found, expected, atol=3e-7)
    np.testing.assert_allclose(gradient, (dy - np.sum(dy * expected, 1, keepdims=True)) * expected, atol=1e-6)


@BOTH
def test_bias_matches_the_closed_form(pullback, kernels):
    x, bias, dy = drawn(6, 5), drawn(5, seed=1), drawn(6, 5, seed=2)
    (found,), gradients, _ = pullback(Applied(kernels.add_bias()), [x, bias], [dy])
    for one, expected in zip([found, *gradients], [x + bias, dy, dy.sum(0)]):
        np.testing.assert_allclose(one, expected, atol=1e-6)  # float32 sums of six numbers of order 1


@BOTH
@pytest.mark.parametrize("terms", [1, 2])
def test_bias_of_experts_matches_the_closed_form(pullback, kernels, terms):
    """A term's bias is its part; the gradient is the whole's."""
    x, bias, dy = drawn(3, 6, 5), drawn(3, 1, 5, seed=1), drawn(3, 6, 5, seed=2)
    (found,), gradients, _ = pullback(kernels.add_batch_bias(terms), [x, bias], [dy])
    for one, expected in zip([found, *gradients], [x + bias / terms, dy, dy.sum(1, keepdims=True)]):
        np.testing.assert_allclose(one, expected, atol=1e-6)  # float32 sums of six numbers of order 1


@BOTH
def test_linear_map_matches_the_closed_form(pullback, kernels):
    x, weight, bias, dy = drawn(6, 7), drawn(5, 7, seed=1), drawn(5, seed=2), drawn(6, 5, seed=3)
    (found,), gradients, _ = pullback(kernels.linear(), [x, weight, bias], [dy])
    expected = [x @ weight.T + bias, dy @ weight, dy.T @ x, dy.sum(0)]
    for one, wanted in zip([found, *gradients], expected):
        np.testing.assert_allclose(one, wanted, atol=3e-6)  # float32 sums of seven products of order 1


def test_both_sets_have_every_operation():
    assert CPU.activations.keys() == ASCEND.activations.keys()
    forms = [field.name for field in fields(KernelSet) if field.name not in ("name", "activations", "few_operators")]
    assert forms and all(callable(getattr(one, form)) for one in (CPU, ASCEND) for form in forms)


@pytest.mark.parametrize(("device", "expected"), [("ascend", ASCEND), ("cpu", CPU), (None, CPU)])
def test_the_device_chooses(device, expected):
    assert kernel_set(device) is expected


def test_an_unknown_activation_is_told_with_the_choices():
    with pytest.raises(InputError, match="'swish', expected one of gelu, gelu_tanh, fast_gelu, relu"):
        CPU.activation("swish")
