"""Equal shards of an array along one axis, cut out and put together again: what a tensor-parallel rank holds of a
whole. NumPy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from locmoe_ops.errors import InputError


@dataclass(frozen=True)
class ShardSpec:
    """What one rank holds of a whole array.

    Attributes:
        axis: that is cut. shard: number of the rank's shard, from 0. num_shards: equal ones that the whole has.
        blocks: equal stretches of the axis, one after another, each of which is cut by itself.
    """

    axis: int
    shard: int
    num_shards: int
    blocks: int = 1

    def shape_of(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shard's shape. Raises InputError where the shards would not be equal."""
        if whole[self.axis] % (self.num_shards * self.blocks):
            raise InputError(
                f"tensor parallel: axis {self.axis} of shape {list(whole)} in {self.blocks} stretches cannot be cut "
                f"into {self.num_shards} equal parts; expected a multiple of {self.num_shards * self.blocks}"
            )
        return (*whole[: self.axis], whole[self.axis] // self.num_shards, *whole[self.axis + 1 :])

    def whole_shape(self, part: Sequence[int]) -> tuple[int, ...]:
        """The whole's shape, of a shard's."""
        return (*part[: self.axis], part[self.axis] * self.num_shards, *part[self.axis + 1 :])

    def cut(self, whole: np.ndarray) -> np.ndarray:
        """This rank's shard of `whole`."""
        shape, before, after = self.shape_of(whole.shape), whole.shape[: self.axis], whole.shape[self.axis + 1 :]
        # (..., blocks, num_shards, n, ...) <- (..., blocks * num_shards * n, ...)
        stretches = whole.reshape(*before, self.blocks, self.num_shards, -1, *after)
        # (..., blocks * n, ...) <- (..., blocks, n, ...)
        return np.ascontiguousarray(np.take(stretches, self.shard, self.axis + 1)).reshape(shape)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The whole array from the shards of all ranks, in the order of the group; the inverse of `cut`."""
        before, after = parts[0].shape[: self.axis], parts[0].shape[self.axis + 1 :]
        stretches = [part.reshape(*before, self.blocks, 1, -1, *after) for part in parts]
        return np.concatenate(stretches, self.axis + 1).reshape(self.whole_shape(parts[0].shape))
