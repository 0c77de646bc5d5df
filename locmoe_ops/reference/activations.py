"""Nonlinearities of the expert FFN and their derivatives, element by element in float64."""

import math
from typing import Callable, NamedTuple

import numpy as np

TANH_SCALE = math.sqrt(2.0 / math.pi)
TANH_CUBIC = 0.044715
SIGMOID_SCALE = 1.702

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + _erf(x / math.sqrt(2.0))) + x * density


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(TANH_SCALE * (x + TANH_CUBIC * x**3)))


def _gelu_tanh_slope(x: np.ndarray) -> np.ndarray:
    tanh = np.tanh(TANH_SCALE * (x + TANH_CUBIC * x**3))
    inner_slope = TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x**2)
    return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh**2) * inner_slope


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # By tanh, which saturates where exp would overflow.
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _fast_gelu(x: np.ndarray) -> np.ndarray:
    return x * _sigmoid(SIGMOID_SCALE * x)


def _fast_gelu_slope(x: np.ndarray) -> np.ndarray:
    gate = _sigmoid(SIGMOID_SCALE * x)
    return gate + x * SIGMOID_SCALE * gate * (1.0 - gate)


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def _relu_slope(x: np.ndarray) -> np.ndarray:
    return (x > 0.0).astype(np.float64)


class Activation(NamedTuple):
    """A nonlinearity and its derivative; both map float64 arrays of any shape to the same shape."""

    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(_gelu, _gelu_slope),
    "gelu_tanh": Activation(_gelu_tanh, _gelu_tanh_slope),
    "fast_gelu": Activation(_fast_gelu, _fast_gelu_slope),
    "relu": Activation(_relu, _relu_slope),
}
