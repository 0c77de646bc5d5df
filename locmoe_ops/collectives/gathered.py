"""An all-to-all made of an all-gather, for groups in which the backend has no all-to-all (HCCL on Ascend 910A, by
its documentation).

Everybody gets everything, and keeps what was for him: P times the numbers of an all-to-all are sent. The results are
the same to the bit: nothing is added on the way there, and zeros alone on the way back.

Shape legend: P ranks of the group, n numbers of a slice.
"""

from __future__ import annotations

from typing import Any

from mindspore import nn


class OwnSlices(nn.Cell):
    """What a rank keeps of what all have gathered. Its gradient has zeros in the place of the others' slices.

    Args:
        size: P. index: of this rank in the group.

    Input: (P * P, ...), rank after rank. Output: (P, ...), the slice of each rank that is meant for this one.
    """

    def __init__(self, size: int, index: int) -> None:
        super().__init__()
        self.size, self.index = size, index

    def construct(self, whole: Any) -> Any:
        shape = (self.size,) + whole.shape[1:]
        parts = whole.reshape(self.size, self.size, -1)  # (P, P, n) <- (P * P, ...): from each rank, for each
        return parts[:, self.index].reshape(shape)  # (P, ...) <- (P, n) <- (P, P, n)


class GatheredAllToAll(nn.Cell):
    """`Collectives.all_to_all` by all-gather; the gradient of the gather is a reduce-scatter.

    Args:
        gather: Cell of an all-gather in the group. size: P. index: of this rank in the group.

    Input and output: (P, ...).
    """

    def __init__(self, gather: nn.Cell, size: int, index: int) -> None:
        super().__init__()
        self.gather = gather
        self.own = OwnSlices(size, index)

    def construct(self, x: Any) -> Any:
        return self.own(self.gather(x))
