"""Counter-based random numbers: a pure function of seeds and position, with no state that a resume could lose.

Each row of a batch carries one int32 seed (drawn on the host from run seed, step and global row). The numbers are then
the same at any parallel degree and after any restart, which stateful generators inside compiled graphs cannot promise.

Shape legend: R rows of a batch, n numbers of each.
"""

from typing import Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

# The 32-bit xorshift-multiply mixer "lowbias32" (C. Wellons, "hash prospector").
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
_SHIFTS = (16, 15, 16)
_HALF, _BYTE, _LOW_15_BITS = 0xFFFF, 0xFF, 0x7FFF
_PIECES = tuple(tuple(factor >> (8 * place) & _BYTE for place in range(4)) for factor in _MULTIPLIERS)
_and, _xor, _shift = ops.bitwise_and, ops.bitwise_xor, ops.bitwise_right_shift


class SeededUniform(nn.Cell):
    """Uniform numbers in [0, 1), one for each of `length` positions of every seed.

    The mixer is arithmetic modulo 2**32, here on halves of 16 bits in int32 of which no sum or product exceeds 2**25:
    what int32 does beyond its range is not said of Ascend.

    Args:
        length: numbers per seed.
        salt: tells call sites apart; equal salts give equal numbers.
        start: first position, for a rank that holds a part of a longer row.

    Inputs: seeds <int32>[R]. Output: <float32>[R, length], multiples of 2**-24.
    """

    def __init__(self, length: int, salt: int, start: int = 0) -> None:
        super().__init__()
        offsets = position_bits(start + length, salt)[start:].reshape(1, length)  # (1, n) <- (n,)
        self.high, self.low = (Tensor(half.astype(np.int32)) for half in (offsets >> 16, offsets & _HALF))

    def construct(self, seeds: Tensor) -> Tensor:
        high, low = mixed_halves(self.high, self.low, seeds.reshape(-1, 1))  # (R, n) <- (1, n), (R, 1)
        bits = _and(high, _constant(_BYTE)) * 65536 + low
        return ops.cast(bits, dtype.float32) * (1.0 / 16777216.0)


def mixed_halves(high: Tensor, low: Tensor, seeds: Tensor) -> Tuple[Tensor, Tensor]:
    """The mixer on the sum of an unsigned number, given and returned as its halves of 16 bits, and a seed.

    Args:
        high, low: <int32>, 0 to 65535. seeds: <int32>, of a shape that goes with theirs.
    """
    half = _constant(_HALF)
    low = low + _and(seeds, half)
    high = _and(high + _and(_shift(seeds, _constant(16)), half) + _shift(low, _constant(16)), half)
    high, low = _times(*_fold_16(high, _and(low, half)), _PIECES[0])
    high, low = _times(*_fold_15(high, low), _PIECES[1])
    return _fold_16(high, low)


def _fold_16(high: Tensor, low: Tensor) -> Tuple[Tensor, Tensor]:
    """x ^ (x >> 16), the shift being one of signed numbers: the mixer then sends pairs of inputs to one output, which
    24 bits would do anyway.
    """
    return _xor(high, _signs(high)), _xor(low, high)


def _fold_15(high: Tensor, low: Tensor) -> Tuple[Tensor, Tensor]:
    """x ^ (x >> 15), likewise."""
    shifted = _and(high, _constant(_LOW_15_BITS)) * 2 + _shift(low, _constant(15))
    return _xor(high, _signs(high)), _xor(low, shifted)


def _signs(high: Tensor) -> Tensor:
    """The highest bit, sixteen times."""
    return _shift(high, _constant(15)) * _HALF


def _times(high: Tensor, low: Tensor, pieces: Tuple[int, ...]) -> Tuple[Tensor, Tensor]:
    """x * factor modulo 2**32, by bytes of the factor, the lowest first: every product has 24 bits."""
    half, byte, by_8, by_16 = _constant(_HALF), _constant(_BYTE), _constant(8), _constant(16)
    first, second = low * pieces[0], low * pieces[1]
    lower = _and(first, half) + _and(second, byte) * 256
    carry = _shift(first, by_16) + _shift(second, by_8) + _shift(lower, by_16)
    upper = _and(high * pieces[0], half) + _and(high * pieces[1], byte) * 256
    upper = upper + _and(low * pieces[2], half) + _and(low * pieces[3], byte) * 256 + carry
    return _and(upper, half), _and(lower, half)


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
    return Tensor(bits, dtype.int32)


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
