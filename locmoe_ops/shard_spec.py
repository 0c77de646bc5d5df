"""Equal parts of an array along one axis, cut out and put together again: what a tensor-parallel rank holds of a whole.
NumPy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from locmoe_ops.errors import InputError


@dataclass(frozen=True)
class ShardSpec:
    """The part of a whole array that one rank holds: the `index`-th of `parts` equal ones along `axis`.

    With several `blocks` the axis is that many equal stretches, one after another, and each is cut by itself.
    """

    axis: int
    index: int
    parts: int
    blocks: int = 1

    def shape_of(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The part's shape. Raises InputError where the parts would not be equal."""
        if whole[self.axis] % (self.parts * self.blocks):
            raise InputError(
                f"tensor parallel: axis {self.axis} of shape {list(whole)} in {self.blocks} stretches cannot be cut "
                f"into {self.parts} equal parts; expected a multiple of {self.parts * self.blocks}"
            )
        return (*whole[: self.axis], whole[self.axis] // self.parts, *whole[self.axis + 1 :])

    def whole_shape(self, part: Sequence[int]) -> tuple[int, ...]:
        return (*part[: self.axis], part[self.axis] * self.parts, *part[self.axis + 1 :])

    def cut(self, whole: np.ndarray) -> np.ndarray:
        """This rank's part of `whole`."""
        shape = self.shape_of(whole.shape)
        stretches = whole.reshape(*whole.shape[: self.axis], self.blocks, self.parts, -1, *whole.shape[self.axis + 1 :])
        return np.ascontiguousarray(np.take(stretches, self.index, self.axis + 1)).reshape(shape)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The whole array from the parts of all ranks, in the order of the group; the inverse of `cut`."""
        before, after = parts[0].shape[: self.axis], parts[0].shape[self.axis + 1 :]
        stretches = [part.reshape(*before, self.blocks, 1, -1, *after) for part in parts]
        return np.concatenate(stretches, self.axis + 1).reshape(self.whole_shape(parts[0].shape))
