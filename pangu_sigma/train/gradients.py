"""Gradients of one optimizer step: summed over ranks and measured.

Shape legend: n numbers of a tensor in all, d its last axis.
"""

import math
from typing import List, Optional, Sequence, Tuple

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops

from locmoe_ops.collectives.hierarchical_reduce import HierarchicalAllReduce, all_reduce_of
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.tensor_parallel import slice_of
from pangu_sigma.model.parameter_groups import is_expert_parameter, plan_buckets
from pangu_sigma.train.gradient_overlap import GradientOverlap, OverlappedGradients

_reshape = ops.Reshape()
_shape = ops.Shape()
_sum = ops.ReduceSum()
flatten = ops.MultitypeFuncGraph("flatten")
restore = ops.MultitypeFuncGraph("restore")
_squares = ops.MultitypeFuncGraph("squares")


@flatten.register("Tensor")
def _flatten_one(tensor: Tensor) -> Tensor:
    return _reshape(tensor, (-1,))  # (n,) <- (...)


@restore.register("Tensor", "Tensor")
def _restore_one(flat: Tensor, like: Tensor) -> Tensor:
    return _reshape(flat, _shape(like))  # (...) <- (n,)


@_squares.register("Tensor")
def squares_of(tensor: Tensor) -> Tensor:
    """Sum of the squares of all numbers of a tensor."""
    # (n / d, d) <- (..., d): sums over rows run on all CPU threads, a sum over all elements on one.
    rows = _reshape(tensor, (-1, _shape(tensor)[-1]))
    return _sum(_sum(rows * rows, -1), 0)


class BucketedAllReduce(nn.Cell):
    """Sums tensors over a group, several in one message.

    Args:
        shapes: of the tensors, in order; every bucket holds as many neighbours as `plan_buckets` says.
        collectives: of this rank.
        group: kind of the group.
        tag: what the buckets' tags begin with.
        wire: type in which they travel (see `NarrowAllReduce`); None: float32.

    Inputs and outputs: a tuple of <float32> tensors of these shapes.
    """

    def __init__(
        self,
        shapes: Sequence[Tuple[int, ...]],
        collectives: Collectives,
        group: str,
        tag: str,
        wire: Optional[dtype.Type] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.sizes = tuple(math.prod(shape) for shape in shapes)
        self.alone = len(collectives.topology.group_of(group, collectives.rank)) == 1
        self.buckets = plan_buckets(self.sizes)
        self.reduce = nn.CellList(
            [all_reduce_of(collectives, group, f"{tag}/{i}", wire) for i in range(len(self.buckets))]
        )
        self.concat = ops.Concat()
        self.map = ops.HyperMap()

    def construct(self, tensors: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        if self.alone:
            return tensors
        results = ()
        for number, (start, end) in enumerate(self.buckets):
            bucket = self.reduce[number](self.concat(self.map(flatten, tensors[start:end])))
            parts = ops.split(bucket, self.sizes[start:end])
            results = results + self.map(restore, parts, tensors[start:end])
        return results


class SquaresOfGroup(nn.Cell):
    """Sum of squares of tensors of which the ranks of a tensor-parallel group hold a part each, or all the same.

    The latter count 1/P on each of P ranks before the sum over the group, so that they count once.

    Args:
        parameters: say which tensors are parts (see `slice_of`).
        collectives: of this rank.
        tag: of the sum over the group.

    Input: a tuple of <float32> tensors. Output: <float32> scalar, the same on all ranks of the group.
    """

    def __init__(self, parameters: Sequence[Parameter], collectives: Collectives, tag: str) -> None:
        super().__init__(auto_prefix=False)
        self.parts = collectives.topology.tensor
        self.weigh(parameters)
        self.sum = collectives.all_reduce("tp", tag)
        self.map = ops.HyperMap()
        self.add = ops.AddN()

    def weigh(self, parameters: Sequence[Parameter]) -> None:
        """From now on squares are of tensors as these `parameters`."""
        self.weights = Tensor(
            [1.0 / self.parts if slice_of(p) is None else 1.0 for p in parameters] or [0.0], dtype.float32
        )

    def construct(self, tensors: Tuple[Tensor, ...]) -> Tensor:
        return self.total(self.each(tensors))

    def each(self, tensors: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        """This rank's sum of squares of each of the `tensors`."""
        return self.map(_squares, tensors)

    def total(self, squares: Tuple[Tensor, ...]) -> Tensor:
        """The output from `each` of the tensors, given as `squares`."""
        if self.parts == 1:
            return self.add(squares)
        return self.sum((ops.stack(squares) * self.weights).sum().reshape(1)).reshape(())


class DenseExchange(nn.Cell):
    """Sums dense gradients over `dp`: waits for those whose sums have been started, and exchanges the others.

    Args:
        parameters: dense ones, in gradient order.
        statistics_size: numbers of the vector of statistics.
        collectives: of this rank.
        overlap: says which sums have been started during the backward pass; None: none.
        wire: type in which gradients travel; None: float32.

    Inputs: gradients, a tuple of <float32> tensors in the order of `parameters`, first the handles of those that have
    been started (see `AsyncAllReduce`); statistics <float32>[size], which is sent in the last bucket, or by itself
    where that is of another type. Outputs: the sums of both.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        statistics_size: int,
        collectives: Collectives,
        overlap: Optional[GradientOverlap] = None,
        wire: Optional[dtype.Type] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.overlapped = OverlappedGradients(overlap)
        self.first = self.overlapped.count  # of those that are exchanged here
        self.count = len(parameters) - self.first
        self.together = wire is None
        shapes = [parameter.shape for parameter in parameters[self.first :]]
        shapes += [(statistics_size,)] if self.together else []
        self.sum_others = BucketedAllReduce(shapes, collectives, "dp", "gradient/dense", wire)
        self.sum_statistics = nn.Identity()
        if not self.together:
            self.sum_statistics = HierarchicalAllReduce(collectives, "dp", "gradient/statistics")

    def construct(self, gradients: Tuple[Tensor, ...], statistics: Tensor) -> Tuple[Tuple[Tensor, ...], Tensor]:
        if not self.together:
            statistics = self.sum_statistics(statistics)
            return self.overlapped(gradients, statistics) + self.sum_others(gradients[self.first :]), statistics
        others = self.sum_others(gradients[self.first :] + (statistics,))
        statistics = others[self.count]
        return self.overlapped(gradients, statistics) + others[: self.count], statistics


class GradientExchange(nn.Cell):
    """Sums dense gradients over `dp` and expert gradients over `edp`, and takes the norm of all parameters on all
    ranks.

    Args:
        parameters: of this rank, in gradient order (see `ordered_parameters`).
        statistics_size: numbers of the vector of statistics.
        collectives: of this rank.
        overlap: says which sums have been started during the backward pass; None: none.
        wire: type in which gradients travel; None: float32.

    Attributes:
        targets: what is to be updated by these gradients: the parameters.

    Inputs: a tuple of <float32> gradients in the order of `parameters`, with handles for those whose sums have been
    started, and a vector of statistics to be summed over `dp`.
    Outputs: the summed gradients, the summed statistics, and the sum of squares of the summed gradients, <float32>
    scalar: every expert counted once, wherever it lives, and so is everything in a tensor-parallel group, whether its
    ranks hold a part each or all the same.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        statistics_size: int,
        collectives: Collectives,
        overlap: Optional[GradientOverlap] = None,
        wire: Optional[dtype.Type] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.targets = ParameterTuple(parameters)
        dense = [p for p in parameters if not is_expert_parameter(p.name)]
        experts = [p.shape for p in parameters if is_expert_parameter(p.name)]
        self.dense = len(dense)
        self.has_experts = bool(experts)
        self.sum_dense = DenseExchange(dense, statistics_size, collectives, overlap, wire)
        self.sum_experts = BucketedAllReduce(experts, collectives, "edp", "gradient/experts", wire)
        self.sum_squares = collectives.all_reduce("ep", "gradient/norm")
        self.dense_squares = SquaresOfGroup(dense, collectives, "gradient/norm/dense")
        self.expert_squares = SquaresOfGroup(
            [p for p in parameters if is_expert_parameter(p.name)], collectives, "gradient/norm/experts"
        )

    @property
    def shards(self) -> List[nn.Cell]:
        """Parameters that are updated in vectors: none, each is by itself."""
        return []

    def construct(self, gradients: Tuple[Tensor, ...], statistics: Tensor) -> Tuple[Tuple[Tensor, ...], Tensor, Tensor]:
        dense, statistics = self.sum_dense(gradients[: self.dense], statistics)
        squares = self.dense_squares(dense)
        if not self.has_experts:
            return dense, statistics, squares
        experts = self.sum_experts(gradients[self.dense :])
        own = self.expert_squares(experts)
        return dense + experts, statistics, squares + self.sum_squares(own.reshape(1)).reshape(())

    def take_share(self) -> None:
        """Nothing to do before the update: every rank makes all of it (see `ShardedExchange`)."""

    def spread_share(self) -> None:
        """Nor after it."""
