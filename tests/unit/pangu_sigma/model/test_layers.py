import numpy as np
import pytest

from mindspore import Tensor, dtype

from pangu_sigma.model.layers import LayerNorm, Linear, constant


def test_constant_is_filled_float32():
    parameter = constant((2, 3), 1.5, "name")
    assert (parameter.name, parameter.dtype, parameter.requires_grad) == ("name", dtype.float32, True)
    np.testing.assert_array_equal(parameter.asnumpy(), np.full((2, 3), 1.5))


@pytest.mark.parametrize("compute_dtype, tolerance", [(dtype.float32, 1e-6), (dtype.float16, 5e-3)])
def test_linear_matches_numpy(networks, numpy_model, pynative_mode, compute_dtype, tolerance):
    linear = Linear(16, 5, compute_dtype)
    networks.randomise(linear, 0)
    x = np.random.default_rng(1).standard_normal((7, 16)).astype(np.float32)
    expected = x.astype(np.float64) @ linear.weight.asnumpy().T + linear.bias.asnumpy()
    y = linear(Tensor(x))
    assert y.dtype == compute_dtype and linear.weight.dtype == dtype.float32
    # Sums of 16 products, rounded at 6e-8 or at 5e-4 each.
    assert numpy_model.relative_error(y.asnumpy(), expected) < tolerance


@pytest.mark.parametrize("kind, size", [
    (np.float32, 1.0),
    (np.float32, 1e4),
    (np.float16, 1e4),  # squares would overflow float16
    (np.float32, 1e-4),  # variance far below epsilon
])
def test_layer_norm_matches_numpy(networks, numpy_model, pynative_mode, kind, size):
    norm = LayerNorm(16, 1e-5)
    networks.randomise(norm, 0)
    x = (size * np.random.default_rng(1).standard_normal((7, 16))).astype(kind)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(1, keepdims=True)
    expected = centred / np.sqrt(np.mean(centred**2, 1, keepdims=True) + 1e-5) * norm.gamma.asnumpy() + norm.beta.asnumpy()
    y = norm(Tensor(x))
    assert y.dtype == dtype.float32
    assert numpy_model.relative_error(y.asnumpy(), expected) < 1e-5


def test_layer_norm_of_equal_features_is_its_bias(networks, pynative_mode):
    norm = LayerNorm(16, 1e-5)
    networks.randomise(norm, 0)
    # 3 is exact, so is its mean: nothing remains to be divided by a tiny deviation.
    y = norm(Tensor(np.full((2, 16), 3.0, np.float32)))
    np.testing.assert_allclose(y.asnumpy(), np.tile(norm.beta.asnumpy(), (2, 1)), atol=1e-6)
