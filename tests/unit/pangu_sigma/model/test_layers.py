import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, dtype

from locmoe_ops.kernels import Normalise
from pangu_sigma.model.layers import Arithmetic, LayerNorm, Linear, constant


def test_constant_is_filled_float32():
    parameter = constant((2, 3), 1.5, "name")
    assert (parameter.name, parameter.dtype, parameter.requires_grad) == ("name", dtype.float32, True)
    np.testing.assert_array_equal(parameter.asnumpy(), np.full((2, 3), 1.5))


@pytest.mark.parametrize("compute_dtype, tolerance", [(dtype.float32, 1e-6), (dtype.float16, 5e-3)])
def test_linear_matches_numpy(networks, numpy_model, pynative_mode, compute_dtype, tolerance):
    linear = Linear(16, 5, Arithmetic(compute_dtype))
    networks.randomise(linear, 0)
    x = np.random.default_rng(1).standard_normal((7, 16)).astype(np.float32)
    expected = x.astype(np.float64) @ linear.weight.asnumpy().T + linear.bias.asnumpy()
    y = linear(Tensor(x))
    assert y.dtype == compute_dtype and linear.weight.dtype == dtype.float32
    # Sums of 16 products, rounded at 6e-8 or at 5e-4 each.
    assert numpy_model.relative_error(y.asnumpy(), expected) < tolerance


@pytest.mark.parametrize(
    "kind, size",
    [
        (np.float32, 1.0),
        (np.float32, 1e4),
        (np.float16, 1e4),  # squares would overflow float16
        (np.float32, 1e-4),  # variance far below epsilon
    ],
)
def test_layer_norm_matches_numpy(networks, numpy_model, pynative_mode, kind, size):
    norm = LayerNorm(16, 1e-5)
    networks.randomise(norm, 0)
    x = (size * np.random.default_rng(1).standard_normal((7, 16))).astype(kind)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(1, keepdims=True)
    expected = (
        centred / np.sqrt(np.mean(centred**2, 1, keepdims=True) + 1e-5) * norm.gamma.asnumpy() + norm.beta.asnumpy()
    )
    y = norm(Tensor(x))
    assert y.dtype == dtype.float32
    assert numpy_model.relative_error(y.asnumpy(), expected) < 1e-5


def test_layer_norm_of_equal_features_is_its_bias(networks, pynative_mode):
    norm = LayerNorm(16, 1e-5)
    networks.randomise(norm, 0)
    # 3 is exact, so is its mean: nothing remains to be divided by a tiny deviation.
    y = norm(Tensor(np.full((2, 16), 3.0, np.float32)))
    np.testing.assert_allclose(y.asnumpy(), np.tile(norm.beta.asnumpy(), (2, 1)), atol=1e-6)


@pytest.mark.parametrize("kind, tolerance", [(dtype.float32, 1e-6), (dtype.float16, 5e-3)])
def test_linear_gradients_match_the_closed_form(networks, numpy_model, pynative_mode, kind, tolerance):
    linear = Linear(16, 5, Arithmetic(kind))
    networks.randomise(linear, 0)
    rng = np.random.default_rng(1)
    x, weights = rng.standard_normal((7, 16)).astype(np.float32), rng.standard_normal((7, 5)).astype(np.float32)
    gradients = ms.grad(lambda x: (linear(x) * Tensor(weights)).sum(), 0, linear.trainable_params())(Tensor(x))
    expected = {"x": weights @ linear.weight.asnumpy(), "weight": weights.T @ x, "bias": weights.sum(0)}
    for found, (name, value) in zip((gradients[0], *gradients[1]), expected.items()):
        assert found.dtype == dtype.float32, name
        # Sums of up to 16 products, rounded at 6e-8 or at 5e-4 each.
        assert numpy_model.relative_error(found.asnumpy(), value) < tolerance, name


@pytest.mark.parametrize("size", [1.0, 1e3, 1e-3])
def test_layer_norm_gradients_match_finite_differences(networks, pynative_mode, size):
    """Against float64, one direction for each of x, gamma and beta; 1e-3 makes the variance smaller than epsilon."""
    norm = LayerNorm(16, 1e-5)
    networks.randomise(norm, 0)
    rng = np.random.default_rng(1)
    inputs = [size * rng.standard_normal((7, 16)), norm.gamma.asnumpy(), norm.beta.asnumpy()]
    inputs, weights = [value.astype(np.float32) for value in inputs], rng.standard_normal((7, 16)).astype(np.float32)

    def objective(x, gamma, beta):
        centred = x - x.mean(1, keepdims=True)
        return np.sum(weights * (centred / np.sqrt(np.mean(centred**2, 1, keepdims=True) + 1e-5) * gamma + beta))

    gradients = ms.grad(lambda x: (norm(x) * Tensor(weights)).sum(), 0, norm.trainable_params())(Tensor(inputs[0]))
    for i, gradient in enumerate((gradients[0], *gradients[1])):
        direction = rng.standard_normal(inputs[i].shape)
        scale = 1e-5 * np.abs(inputs[i]).max()
        ahead, behind = (
            [value + (sign * scale * direction if i == j else 0.0) for j, value in enumerate(map(np.float64, inputs))]
            for sign in (1.0, -1.0)
        )
        slope = (objective(*ahead) - objective(*behind)) / (2.0 * scale)
        # float32 sums of 112 terms; the difference errs by the square of its relative step, 1e-10.
        assert abs(slope - np.sum(gradient.asnumpy() * direction)) < 1e-5 * np.linalg.norm(gradient.asnumpy()), i


def test_layer_norm_gradient_does_without_the_kernels_third_output(pynative_mode):
    """It is the variance on CPU and the reciprocal of the deviation on Ascend."""
    x, ones = Tensor(np.array([[1.0, 2.0, 3.0, 6.0]], np.float32)), Tensor(np.ones(4, np.float32))
    normalise = Normalise(1e-5)
    rows, mean, third = normalise(x, ones, ones)
    assert mean.asnumpy() == 3.0
    gradient = Tensor(np.array([[1.0, 0.0, -2.0, 0.5]], np.float32))
    expected, found = (
        normalise.bprop(x, ones, ones, (rows, mean, last), (gradient, None, None)) for last in (third, 0.0 * third)
    )
    for one, other in zip(expected, found):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())
