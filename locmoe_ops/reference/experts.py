"""One expert on one token: y = act(x @ W1 + b1) @ W2 + b2, forward and backward, all in float64."""

import math
from typing import NamedTuple, Union

import numpy as np

from locmoe_ops.reference.spec import LayerParameters, SharedWeights

TANH_SCALE = math.sqrt(2.0 / math.pi)
TANH_CUBIC = 0.044715
SIGMOID_SCALE = 1.702

ExpertWeights = Union[LayerParameters, SharedWeights]  # each has w1, b1, w2 and b2

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(name: str, x: np.ndarray) -> np.ndarray:
    """The nonlinearity `name` (one of `spec.ACTIVATIONS`) of each element of `x` float64, of any shape."""
    if name == "gelu":
        return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))
    if name == "gelu_tanh":
        return 0.5 * x * (1.0 + np.tanh(TANH_SCALE * (x + TANH_CUBIC * x**3)))
    if name == "fast_gelu":
        return x * _sigmoid(SIGMOID_SCALE * x)
    assert name == "relu", name
    return np.maximum(x, 0.0)


def slope(name: str, x: np.ndarray) -> np.ndarray:
    """The derivative of the nonlinearity `name` at each element of `x` float64; 0 for `relu` at 0."""
    if name == "gelu":
        density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
        return 0.5 * (1.0 + _erf(x / math.sqrt(2.0))) + x * density
    if name == "gelu_tanh":
        tanh = np.tanh(TANH_SCALE * (x + TANH_CUBIC * x**3))
        inner_slope = TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x**2)
        return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh**2) * inner_slope
    if name == "fast_gelu":
        gate = _sigmoid(SIGMOID_SCALE * x)
        return gate + x * SIGMOID_SCALE * gate * (1.0 - gate)
    assert name == "relu", name
    return (x > 0.0).astype(np.float64)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # By tanh, which saturates where exp would overflow.
    return 0.5 * (1.0 + np.tanh(0.5 * x))


class ExpertGradients(NamedTuple):
    """Gradients of one expert's output on one token, contracted with an output gradient (d,)."""

    x: np.ndarray  # (d,) float64
    w1: np.ndarray  # (d,f) float64
    b1: np.ndarray  # (f,) float64
    w2: np.ndarray  # (f,d) float64
    b2: np.ndarray  # (d,) float64


def expert_output(parameters: ExpertWeights, activation: str, expert: int, x: np.ndarray) -> np.ndarray:
    """The output (d,) float64 of one expert for one token.

    Args:
        parameters: of the layer, or of its shared experts. activation: one of `spec.ACTIVATIONS`.
        expert: its global id, or its number among the shared. x: (d,), the token.
    """
    inner = activate(activation, _before_activation(parameters, expert, x))
    return inner @ parameters.w2[expert].astype(np.float64) + parameters.b2[expert]


def expert_gradients(
    parameters: ExpertWeights, activation: str, expert: int, x: np.ndarray, output_gradient: np.ndarray
) -> ExpertGradients:
    """Gradients of one expert for one token.

    Args:
        parameters, activation, expert, x: as for `expert_output`.
        output_gradient: (d,), of the expert's output.
    """
    before = _before_activation(parameters, expert, x)
    inner_gradient = parameters.w2[expert].astype(np.float64) @ output_gradient
    before_gradient = inner_gradient * slope(activation, before)
    return ExpertGradients(
        x=parameters.w1[expert].astype(np.float64) @ before_gradient,
        w1=np.outer(x, before_gradient),
        b1=before_gradient,
        w2=np.outer(activate(activation, before), output_gradient),
        b2=output_gradient,
    )


def _before_activation(parameters: ExpertWeights, expert: int, x: np.ndarray) -> np.ndarray:
    return x @ parameters.w1[expert].astype(np.float64) + parameters.b1[expert]
