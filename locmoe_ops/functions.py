"""Functions of tensors that need care on some backend, activations of feed-forward networks, order without data."""

import math
from typing import List, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError


def log(x: Tensor) -> Tensor:
    """Natural logarithm of x <float32>, above 0, to rounding.

    MindSpore's Log on CPU is off by up to 2e-6, and by other amounts where its threads share out the work otherwise,
    which they try out during a run: two runs of the same steps then differ in the last bits. Xlogy is neither.
    """
    return ops.xlogy(ops.ones_like(x), x)


_NORMAL, _EXPONENTS, _MANTISSA = 2.0**126, 253, 2.0**23
# The normal powers of two but the largest, and what they make of their binade: [1, 2); the last also does for the next.
_POWERS = Tensor(np.exp2(np.arange(-126, 127)).astype(np.float32))
_SCALES = Tensor(np.exp2(-np.arange(-127.0, 127.0).clip(-126)).astype(np.float32))


def sortable_bits(x: Tensor) -> Tensor:
    """Whole numbers that sort as x does: the bit pattern of a float32 that is 0 or more, as an int32, and the negative
    of that of -x below. Sorting float32 may lose digits on Ascend (warning of `ops.sort`), sorting int32 does not.

    Graphs cannot look at bits: the exponent is found among the powers of two, and what is left of the number, scaled by
    one of them, is exact. (Above 2**127 the pattern is another, in the same order.) There is no gradient.

    Args:
        x: <float32>[n].

    Returns: <int32>[n].
    """
    x = ops.stop_gradient(x)
    size = ops.abs(x)
    exponent = ops.cast(ops.searchsorted(_POWERS, size, right=True), dtype.int32)  # (n,): 0 below the normal numbers
    mantissa = (size * ops.gather(_SCALES, exponent, 0) - 1.0) * _MANTISSA
    small = size * _NORMAL * _MANTISSA
    bits = ops.cast(ops.select(exponent > 0, mantissa, small), dtype.int32) + exponent * int(_MANTISSA)
    return ops.select(x < 0.0, -bits, bits)


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


class ControlDependency(nn.Cell):
    """The identity on several tensors, none of which is used before all are there; the same for their gradients.

    It puts computation between the start and the end of a collective: what must happen first is passed through together
    with what comes later.

    Inputs and outputs: a list of tensors.
    """

    def construct(self, tensors: List[Tensor]) -> List[Tensor]:
        return _tie(tensors)

    def bprop(self, tensors: List[Tensor], out: List[Tensor], dout: List[Tensor]) -> Tuple[List[Tensor]]:
        """The gradients of `tensors` from those of `out`, `dout`."""
        return (_tie(dout),)


def _tie(tensors: List[Tensor]) -> List[Tensor]:
    tied = []
    for tensor in tensors:
        held = tensor
        for other in tensors:
            held = ops.depend(held, other)
        tied.append(held)
    return tied
