"""Sums of float64 numbers over ranks, through collectives that add whole numbers: the same bits however the numbers are
spread over ranks.

A number travels as a whole number of 2**-20 (a millionth of a nat, a token), cut into limbs of 40 bits, which leaves
room in an int64 for what up to 2**20 ranks add. A last limb counts the ranks that have no finite number: NaN, infinity,
and all from 2**139 on, which counts as infinity (the largest float32 is below 2**128).

Shape legend: n numbers.
"""

import numpy as np

from mindspore import Tensor, nn

from locmoe_ops.collectives.interface import Collectives

FRACTION = 2.0**20
LIMIT = 2.0**139
_BITS, _LIMBS = 40, 4
_COUNT_BITS = 20  # of each of the last limb's three counts


def to_limbs(values: np.ndarray) -> np.ndarray:
    """<int64>[5, n], which may be added up over ranks, from float64 [n]."""
    kinds = np.stack([np.isnan(values), values >= LIMIT, values <= -LIMIT]).astype(np.int64)
    rest = np.rint(np.where(kinds.any(0), 0.0, values) * FRACTION)
    limbs = np.empty((_LIMBS + 1, len(values)), np.int64)
    for place in reversed(range(_LIMBS)):
        unit = 2.0 ** (_BITS * place)
        limb = np.trunc(rest / unit)  # exact, as is what is left: both only take bits away
        limbs[place], rest = limb, rest - limb * unit
    limbs[_LIMBS] = sum(kind << (_COUNT_BITS * number) for number, kind in enumerate(kinds))
    return limbs


def from_limbs(limbs: np.ndarray) -> np.ndarray:
    """The sums as float64 [n]: exact but for one rounding; NaN where any rank had NaN, or where infinities of both
    signs meet.
    """
    # Python's integers have no largest one.
    whole = sum(limbs[place].astype(object) * 2 ** (_BITS * place) for place in range(_LIMBS))
    sums = np.array([int(number) / 2**20 for number in whole], np.float64)
    nan, above, below = ((limbs[_LIMBS] >> (_COUNT_BITS * number)) % 2**_COUNT_BITS > 0 for number in range(3))
    sums[above], sums[below] = np.inf, -np.inf
    sums[nan | (above & below)] = np.nan
    return sums


class HostSum(nn.Cell):
    """Sums small host vectors over all ranks. Whole numbers travel, so that sums are exact and the same however many
    ranks there are.

    Args:
        collectives: of this rank.
        tag: under which the bytes are counted.

    Inputs and output: <int64>, any shape; `values` takes other numbers.
    """

    def __init__(self, collectives: Collectives, tag: str) -> None:
        super().__init__(auto_prefix=False)
        self.reduce = collectives.all_reduce("world", tag)

    def construct(self, vector: Tensor) -> Tensor:
        return self.reduce(vector)

    def values(self, own: np.ndarray) -> np.ndarray:
        """<float64>[n] summed over ranks, to 2**-20 of a unit (a nat, a token); NaN and infinity stay what they are."""
        return from_limbs(self(Tensor(to_limbs(own))).asnumpy())
