"""Counter-based random numbers: a pure function of seeds and position, with no state that a resume could lose.

Each row of a batch carries one int32 seed (drawn on the host from run seed, step and global row). The numbers are then
the same at any parallel degree and after any restart, which stateful generators inside compiled graphs cannot promise.

Shape legend: R rows of a batch, n numbers of each.
"""

import numpy as np

from mindspore import Tensor, dtype, nn, ops

# The 32-bit xorshift-multiply mixer "lowbias32" (C. Wellons, "hash prospector").
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
_SHIFTS = (16, 15, 16)
_LOW_24_BITS = 0xFFFFFF


class SeededUniform(nn.Cell):
    """Uniform numbers in [0, 1), one for each of `length` positions of every seed.

    Args:
        length: numbers per seed.
        salt: tells call sites apart; equal salts give equal numbers.
        start: first position, for a rank that holds a part of a longer row.

    Inputs: seeds <int32>[R]. Output: <float32>[R, length], multiples of 2**-24.
    """

    def __init__(self, length: int, salt: int, start: int = 0) -> None:
        super().__init__()
        offsets = position_bits(start + length, salt)[start:]
        self.offsets = Tensor(offsets.view(np.int32).reshape(1, length))  # (1, n) <- (n,)
        self.multipliers = tuple(_constant(factor) for factor in _MULTIPLIERS)
        self.shifts = tuple(_constant(shift) for shift in _SHIFTS)
        self.low_bits = _constant(_LOW_24_BITS)

    def construct(self, seeds: Tensor) -> Tensor:
        bits = self.offsets + seeds.reshape(-1, 1)  # (R, n) <- (1, n), (R, 1)
        bits = self._fold(bits, 0) * self.multipliers[0]
        bits = self._fold(bits, 1) * self.multipliers[1]
        bits = ops.bitwise_and(self._fold(bits, 2), self.low_bits)
        return ops.cast(bits, dtype.float32) * (1.0 / 16777216.0)

    def _fold(self, bits: Tensor, step: int) -> Tensor:
        # The shift is arithmetic on int32: the mixer then sends pairs of inputs to one output, which 24 bits would do
        # anyway.
        return ops.bitwise_xor(bits, ops.bitwise_right_shift(bits, self.shifts[step]))


def position_bits(length: int, salt: int) -> np.ndarray:
    """<uint32>[length]: distinct numbers without a pattern, to which seeds are added; another `salt` gives others.

    Were they equally spaced, one seed's sequence would be another's, shifted by some positions; so would those of two
    salts.
    """
    return _mixed(_mixed(np.arange(length, dtype=np.uint32)) ^ _mixed(np.array([salt & 0xFFFFFFFF], np.uint32)))


def _mixed(bits: np.ndarray) -> np.ndarray:
    for shift, factor in zip(_SHIFTS, _MULTIPLIERS):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits ^ (bits >> np.uint32(_SHIFTS[-1]))


def _constant(bits: int) -> Tensor:
    return Tensor(np.array(bits, np.uint32).view(np.int32))


class SeededDropout(nn.Cell):
    """Inverted dropout on rows of a batch: each element is 0 with probability `rate`, else scaled by 1/(1-rate).

    Args:
        rate: in [0, 1). With 0 the cell is the identity, at no cost.
        length: elements per row (the product of all dimensions after the first, for a batch-major tensor).
        salt: tells the dropout layers of a model apart.
        start: place of these elements within the row, for a rank that holds a part of it.

    Inputs: x <float>, any shape of R * length elements that lie row by row; seeds <int32>[R]. Output: as x.
    """

    def __init__(self, rate: float, length: int, salt: int, start: int = 0) -> None:
        super().__init__()
        self.rate = rate
        self.uniform = SeededUniform(length, salt, start) if rate > 0.0 else nn.Identity()

    def construct(self, x: Tensor, seeds: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = self.uniform(seeds) >= self.rate
        # (...) <- (R, n)
        return x * ops.cast(keep, x.dtype).reshape(x.shape) * (1.0 / (1.0 - self.rate))
