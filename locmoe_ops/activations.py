"""FFN nonlinearities as cells, written with the operators that are fast on CPU and fused on Ascend."""

import math

from mindspore import Tensor, nn, ops

from locmoe_ops.errors import InputError


class ErfGeLU(nn.Cell):
    """x * Phi(x), the exact GeLU (arXiv 1606.08415)."""

    def construct(self, x: Tensor) -> Tensor:
        return x * (ops.erf(x * (1.0 / math.sqrt(2.0))) + 1.0) * 0.5


class TanhGeLU(nn.Cell):
    """The tanh form of GeLU; 0.5 * (1 + tanh(u)) is sigmoid(2u), one operator instead of three."""

    def construct(self, x: Tensor) -> Tensor:
        scale = 2.0 * math.sqrt(2.0 / math.pi)
        return x * ops.sigmoid(x * (x * x * (0.044715 * scale) + scale))


class FastGeLU(nn.Cell):
    """x * sigmoid(1.702 x), PanGu-alpha's activation."""

    def construct(self, x: Tensor) -> Tensor:
        return x * ops.sigmoid(x * 1.702)


ACTIVATIONS = {"gelu": ErfGeLU, "gelu_tanh": TanhGeLU, "fast_gelu": FastGeLU, "relu": nn.ReLU}


def activation(name: str) -> nn.Cell:
    """The activation called `name`, elementwise on any shape and float dtype. Raises InputError if there is none."""
    if name not in ACTIVATIONS:
        raise InputError(f"activation: found '{name}', expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
