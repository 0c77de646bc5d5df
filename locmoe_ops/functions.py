"""Functions of tensors that need care on some backend, and order without data."""

from typing import List, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops


def log(x: Tensor) -> Tensor:
    """Natural logarithm of x <float32>, above 0, to rounding.

    MindSpore's Log on CPU is off by up to 2e-6, and by other amounts where its threads share out the work otherwise,
    which they try out during a run: two runs of the same steps then differ in the last bits. Xlogy is neither.
    """
    return ops.xlogy(ops.ones_like(x), x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x) of x <float32>, to rounding, also where it is next to nothing; and its slope, at 0 too.

    It is max(x, 0) + log(1 + u) with u = exp(-|x|) in (0, 1]; log(1 + u) is the series of 2 artanh(u / (2 + u)), whose
    argument is at most 1/3: after eight terms 2e-9 of it is missing. A logarithm of 1 + u has lost what is below the
    rounding of 1, and so has MindSpore's Log1p on CPU: of 1e-18 it makes 0. The slope is 1 / (1 + exp -x); made of the
    terms' own slopes, of which some are 1/2 and cancel, it would be lost below -18.
    """
    fixed = ops.stop_gradient(x)
    u = ops.exp(-ops.abs(fixed))
    ratio = u / (u + 2.0)
    square, series = ratio * ratio, ops.zeros_like(ratio)
    for power in (15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        series = series * square + 1.0 / power
    slope = ops.select(fixed < 0.0, u, ops.ones_like(u)) / (u + 1.0)
    return ops.maximum(fixed, 0.0) + 2.0 * ratio * series + ops.stop_gradient(slope) * (x - fixed)  # x - fixed is 0


def root_softplus(x: Tensor) -> Tensor:
    """sqrt(log(1 + exp x)) of x <float32>, whose slope is finite also where the logarithm vanishes."""
    return ops.sqrt(ops.maximum(softplus(x), _LEAST_SOFTPLUS))


_LEAST_SOFTPLUS = 1e-30  # whose root has a finite slope; far below any score that a choice depends on
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


def choice_major(values: Tensor) -> Tensor:
    """(k * T,) <- `values` (T, k): all first choices in the order of tokens, then all second ones."""
    if values.shape[1] == 1:
        return values.reshape(-1)  # (T,) <- (T, 1), which is no copy
    return values.T.reshape(-1)  # (k * T,) <- (k, T) <- (T, k)


def swap_first(x: Tensor) -> Tensor:
    """(b, a, c, d) <- `x` (a, b, c, d); no copy where either is 1."""
    first, second, rows, width = x.shape
    if first == 1 or second == 1:
        return x.reshape(second, first, rows, width)  # (b, a, c, d) <- (a, b, c, d)
    return x.transpose(1, 0, 2, 3)  # (b, a, c, d) <- (a, b, c, d)


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
