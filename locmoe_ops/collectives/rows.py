"""Rows whose number only the run knows, in tensors of fixed shape.

Primitives alone: where shapes depend on data, MindSpore's compiler trips over the functions of `ops` inside a gradient.

Shape legend: M rows of the input, d width, P ranks.
"""

import math
from typing import Any, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops


class FirstRows(nn.Cell):
    """The first rows, then zeros; NaN throughout if there should be more than fit: a compiled graph cannot stop with a
    message.

    Args:
        limit: rows of the result.

    Inputs: rows <float>[M, d]; source <int32>[limit], row of `rows` for each of the result; count <int32> scalar, how
    many are real; wanted <int32> scalar, how many there should be. Output: <float>[limit, d].
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.place = Tensor(np.arange(limit, dtype=np.int32))
        self.one, self.nan = Tensor(1.0, dtype.float32), Tensor(math.nan, dtype.float32)
        self.gather, self.select, self.cast, self.reshape = ops.Gather(), ops.Select(), ops.Cast(), ops.Reshape()
        self.zeros = ops.ZerosLike()

    def construct(self, rows: Tensor, source: Tensor, count: Tensor, wanted: Tensor) -> Tensor:
        real = self.place < count
        source = self.select(real, source, self.zeros(source))
        mask = self.cast(real, dtype.float32) * self.select(wanted > self.limit, self.nan, self.one)
        # (limit, d) <- (M, d) at (limit,), times (limit, 1)
        return self.gather(rows, source, 0) * self.reshape(self.cast(mask, rows.dtype), (-1, 1))


class ExtraRow(nn.Cell):
    """Puts one row more behind those of one rank, and takes it out again.

    Args:
        index: of that rank in the group.
        limit: M, rows without it.
    """

    def __init__(self, index: int, limit: int) -> None:
        super().__init__()
        self.up_to_index = index + 1
        self.place = Tensor(np.arange(limit + 1, dtype=np.int32))
        self.result_place = Tensor(np.arange(limit, dtype=np.int32))
        self.limit = limit
        self.first = FirstRows(limit)
        self.gather, self.select, self.minimum = ops.Gather(), ops.Select(), ops.Minimum()

    def put_in(self, rows: Tensor, counts: Tensor) -> Tensor:
        """<float>[M + 1, d] <- rows <float>[M, d], counts <int32>[P]; any row serves as the one more."""
        behind = self._behind(counts)
        source = self.select(self.place > behind, self.place - 1, self.place)
        return self.gather(rows, self.minimum(source, self.limit - 1), 0)

    def take_out(self, rows: Tensor, counts: Tensor, wanted: Tensor) -> Tensor:
        """<float>[M, d] <- rows <float>[sum of counts + 1, d]; zeros where there are none. `wanted` <int32>[P]: the
        counts before they were cut to what there is room for.
        """
        source = self.select(self.result_place < self._behind(counts), self.result_place, self.result_place + 1)
        return self.first(rows, source, total(counts), total(wanted))

    def _behind(self, counts: Tensor) -> Tensor:
        """Where the one more lies: behind the rows of ranks up to this one."""
        return total(counts[: self.up_to_index])


class KeepRows(nn.Cell):
    """What `Collectives.all_to_all_v` is in a group of one rank: its rows, cut or filled up with zeros.

    Args:
        rows: M, of the input.
        limit: rows of the output.

    Inputs: rows <float>[M, d]; counts <int32>[1, 1]. Output: <float>[limit, d].
    """

    def __init__(self, rows: int, limit: int) -> None:
        super().__init__()
        self.forward_rows, self.backward_rows = FirstRows(limit), FirstRows(rows)
        self.forward_source, self.backward_source = (
            Tensor(np.minimum(np.arange(places), last).astype(np.int32))
            for places, last in ((limit, rows - 1), (rows, limit - 1))
        )
        self.zeros = ops.ZerosLike()

    def construct(self, rows: Tensor, counts: Tensor) -> Tensor:
        count = total(counts)
        return self.forward_rows(rows, self.forward_source, count, count)

    def bprop(self, rows: Tensor, counts: Tensor, out: Any, dout: Tensor) -> Tuple[Tensor, Tensor]:
        """`dout`, the gradient of `out`, put back among `rows`; counts have none."""
        count = total(counts)
        return self.backward_rows(dout, self.backward_source, count, count), self.zeros(counts)


def within(counts: Tensor, axis: int, bound: int) -> Tensor:
    """<int32>[P, P], the `counts` <int32>[P, P] cut so that they sum up to at most `bound` along `axis`: the later ones
    give way.
    """
    numbers = ops.Cast()(counts, dtype.float32)
    ends = ops.CumSum()(numbers, axis)
    kept = ops.Minimum()(ends, 1.0 * bound) - ops.Minimum()(ends - numbers, 1.0 * bound)
    return ops.Cast()(kept, dtype.int32)


def total(counts: Tensor) -> Tensor:
    """<int32> scalar <- <int32>, any shape"""
    return ops.Cast()(ops.ReduceSum()(counts), dtype.int32)
