"""One expert on one token: y = act(x @ W1 + b1) @ W2 + b2, forward and backward."""

from typing import NamedTuple

import numpy as np

from locmoe_ops.reference.activations import ACTIVATIONS
from locmoe_ops.reference.spec import LayerParameters


class ExpertGradients(NamedTuple):
    """Gradients of one expert's output on one token, contracted with an output gradient (d,)."""

    x: np.ndarray  # (d,) float64
    w1: np.ndarray  # (d,f) float64
    b1: np.ndarray  # (f,) float64
    w2: np.ndarray  # (f,d) float64
    b2: np.ndarray  # (d,) float64


def expert_output(parameters: LayerParameters, activation: str, expert: int, x: np.ndarray) -> np.ndarray:
    """(d,) float64 <- token x (d,)."""
    inner = ACTIVATIONS[activation].value(_before_activation(parameters, expert, x))
    return inner @ parameters.w2[expert].astype(np.float64) + parameters.b2[expert]


def expert_gradients(
    parameters: LayerParameters, activation: str, expert: int, x: np.ndarray, output_gradient: np.ndarray
) -> ExpertGradients:
    """Gradients for token x (d,), given the gradient (d,) of the expert's output."""
    before = _before_activation(parameters, expert, x)
    inner = ACTIVATIONS[activation].value(before)
    inner_gradient = parameters.w2[expert].astype(np.float64) @ output_gradient
    before_gradient = inner_gradient * ACTIVATIONS[activation].slope(before)
    return ExpertGradients(
        x=parameters.w1[expert].astype(np.float64) @ before_gradient,
        w1=np.outer(x, before_gradient),
        b1=before_gradient,
        w2=np.outer(inner, output_gradient),
        b2=output_gradient,
    )


def _before_activation(parameters: LayerParameters, expert: int, x: np.ndarray) -> np.ndarray:
    return x @ parameters.w1[expert].astype(np.float64) + parameters.b1[expert]
