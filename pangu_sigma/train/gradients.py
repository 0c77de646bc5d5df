"""Gradients of one optimizer step: summed over ranks and measured."""

import math
from typing import TYPE_CHECKING, Optional, Sequence, Tuple

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops

from locmoe_ops.collectives.hierarchical_reduce import HierarchicalAllReduce
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.tensor_parallel import slice_of
from pangu_sigma.model.gradient_buckets import plan_buckets
from pangu_sigma.model.parameter_groups import is_expert_parameter

if TYPE_CHECKING:
    from pangu_sigma.train.gradient_overlap import GradientOverlap

_reshape = ops.Reshape()
_shape = ops.Shape()
_sum = ops.ReduceSum()
flatten = ops.MultitypeFuncGraph("flatten")
restore = ops.MultitypeFuncGraph("restore")
_squares = ops.MultitypeFuncGraph("squares")


@flatten.register("Tensor")
def _flatten_one(tensor: Tensor) -> Tensor:
    return _reshape(tensor, (-1,))


@restore.register("Tensor", "Tensor")
def _restore_one(flat: Tensor, like: Tensor) -> Tensor:
    return _reshape(flat, _shape(like))


@_squares.register("Tensor")
def squares_of(tensor: Tensor) -> Tensor:
    """Sum of the squares of all numbers of a tensor."""
    rows = _reshape(
        tensor, (-1, _shape(tensor)[-1])
    )  # sums over rows run on all CPU threads, a sum over all elements on one
    return _sum(_sum(rows * rows, -1), 0)


class BucketedAllReduce(nn.Cell):
    """Sums tensors over a group, several in one message.

    Args:
        shapes: of the tensors, in order; every bucket holds as many neighbours as `plan_buckets` says.

    Inputs and outputs: a tuple of <float32> tensors of these shapes.
    """

    def __init__(self, shapes: Sequence[Tuple[int, ...]], collectives: Collectives, group: str, tag: str) -> None:
        super().__init__(auto_prefix=False)
        self.sizes = tuple(math.prod(shape) for shape in shapes)
        self.alone = len(collectives.topology.group_of(group, collectives.rank)) == 1
        self.buckets = plan_buckets(self.sizes)
        self.reduce = nn.CellList(
            [HierarchicalAllReduce(collectives, group, f"{tag}/{i}") for i in range(len(self.buckets))]
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

    Input: a tuple of <float32> tensors. Output: <float32> scalar, the same on all ranks of the group.
    """

    def __init__(self, parameters: Sequence[Parameter], collectives: Collectives, tag: str) -> None:
        super().__init__(auto_prefix=False)
        self.parts = collectives.topology.tensor
        self.weights = Tensor(
            [1.0 / self.parts if slice_of(p) is None else 1.0 for p in parameters] or [0.0], dtype.float32
        )
        self.sum = collectives.all_reduce("tp", tag)
        self.map = ops.HyperMap()
        self.add = ops.AddN()

    def construct(self, tensors: Tuple[Tensor, ...]) -> Tensor:
        squares = self.map(_squares, tensors)
        if self.parts == 1:
            return self.add(squares)
        return self.sum((ops.stack(squares) * self.weights).sum().reshape(1)).reshape(())


class DenseExchange(nn.Cell):
    """Sums dense gradients over `dp`: those that have set out early are awaited, the others exchanged.

    Inputs: gradients, a tuple of <float32> tensors in the order of `parameters`, the early ones, of which there are
    stand-ins (see `AsyncAllReduce`), first; statistics <float32>[size], which travels in the last bucket. Outputs: the
    sums of both.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        statistics_size: int,
        collectives: Collectives,
        early: "Optional[GradientOverlap]" = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.buckets = tuple(early.buckets) if early else ()
        self.waits = nn.CellList(early.waits if early else [])
        self.first = len(early.parameters) if early else 0  # of those that are exchanged here
        self.last = len(parameters)
        shapes = [parameter.shape for parameter in parameters[self.first :]] + [(statistics_size,)]
        self.sum_late = BucketedAllReduce(shapes, collectives, "dp", "gradient/dense")

    def construct(self, gradients: Tuple[Tensor, ...], statistics: Tensor) -> Tuple[Tuple[Tensor, ...], Tensor]:
        late = self.sum_late(gradients[self.first :] + (statistics,))
        statistics = late[self.last - self.first]
        summed = ()
        for (start, end), wait in zip(self.buckets, self.waits):
            summed = summed + wait(gradients[start:end], statistics)
        return summed + late[: self.last - self.first], statistics


class GradientExchange(nn.Cell):
    """Sums dense gradients over `dp` and expert gradients over `edp`, and takes the norm of all parameters on all
    ranks.

    Inputs: a tuple of <float32> gradients in the order of `parameters` (see `ordered_parameters`), with stand-ins for
    those that have set out `early`, and a vector of statistics to be summed over `dp`.
    Outputs: the summed gradients, the summed statistics, and the sum of squares of the summed gradients, <float32>
    scalar: every expert counted once, wherever it lives, and so is everything in a tensor-parallel group, whether its
    ranks hold a part each or all the same.

    Attributes: targets (what is to be updated by these gradients: the parameters); shards (none: every rank updates all
    it holds).
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        statistics_size: int,
        collectives: Collectives,
        early: "Optional[GradientOverlap]" = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.targets = ParameterTuple(parameters)
        self.shards = ()
        dense = [p for p in parameters if not is_expert_parameter(p)]
        experts = [p.shape for p in parameters if is_expert_parameter(p)]
        self.dense = len(dense)
        self.has_experts = bool(experts)
        self.sum_dense = DenseExchange(dense, statistics_size, collectives, early)
        self.sum_experts = BucketedAllReduce(experts, collectives, "edp", "gradient/experts")
        self.sum_squares = collectives.all_reduce("ep", "gradient/norm")
        self.dense_squares = SquaresOfGroup(dense, collectives, "gradient/norm/dense")
        self.expert_squares = SquaresOfGroup(
            [p for p in parameters if is_expert_parameter(p)], collectives, "gradient/norm/experts"
        )

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
