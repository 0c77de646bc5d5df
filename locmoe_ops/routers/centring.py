"""Gate values around their mean (ours): what all tokens of a group have in common does not decide between experts.

Hidden states share a large common vector. Its block means are the same for every token of a domain, and where they
differ more between blocks than tokens differ from each other, all tokens follow the same block. `ValueMean` subtracts
a running mean of each expert's value, in training as in evaluation; `CentreUpdate` moves it after a step. No value of
the step itself enters: a token's route does not depend on the others of its batch.

Shape legend: T tokens of this rank, n experts of a group, G groups, E = G * n experts, M sparse layers.
"""

from typing import List, Sequence

import numpy as np

from mindspore import Parameter, Tensor, nn, ops

from locmoe_ops.routers.base import RoutingShape, one_hot


class ValueMean(nn.Cell):
    """Subtracts each expert's mean value over the tokens of its group; the same on every rank.

    The mean is a parameter that no optimizer touches and that checkpoints keep; `CentreUpdate` moves it.

    Args:
        shape: sizes.

    Inputs: values <float32>[T, n]; group <int32>[T]. Output: <float32>[T, n].
    """

    def __init__(self, shape: RoutingShape) -> None:
        super().__init__()
        self.num_groups = shape.num_groups
        self.value_mean = Parameter(
            Tensor(np.zeros((shape.num_groups, shape.per_group), np.float32)), name="value_mean", requires_grad=False
        )
        self.matmul = ops.MatMul(transpose_a=True)

    def construct(self, values: Tensor, group: Tensor) -> Tensor:
        return values - ops.gather(self.value_mean, group, 0)  # (T, n) - (T, n) <- (G, n)

    def sums(self, values: Tensor, group: Tensor) -> Tensor:
        """Of `values` <float32>[T, n], not centred, the sum over this rank's tokens of each `group`: <float32>[E]."""
        values = ops.stop_gradient(values)
        return self.matmul(one_hot(group, self.num_groups), values).reshape(-1)  # (E,) <- (G, n) <- (T, G), (T, n)


class CentreUpdate(nn.Cell):
    """Moves the means of all layers after a step: `m += rate * (mean of the step - m)`, group by group. A group without
    tokens keeps its mean.

    Args:
        means: of the sparse layers, in order. rate: above 0, at most 1. top_k: assignments of a token.

    Inputs: sums <float32>[M, E], of `ValueMean.sums`, and assigned <float32>[M, E], both summed over ranks; finite
    <bool> scalar: nothing moves where it is false. Output: the largest mean in size, <float32> scalar.
    """

    def __init__(self, means: Sequence[ValueMean], rate: float, top_k: int) -> None:
        super().__init__(auto_prefix=False)
        # Without a prefix, parameters keep the names that their routers give them.
        self.means = nn.CellList(list(means), auto_prefix=False)
        self.rate, self.top_k = rate, top_k

    def construct(self, sums: Tensor, assigned: Tensor, finite: Tensor) -> Tensor:
        largest = Tensor(0.0, sums.dtype)
        for layer, cell in enumerate(self.means):
            shape = cell.value_mean.shape
            # (G, n) <- (E,), and (G, 1) <- (G, n) <- (E,)
            of_group, assignments = sums[layer].reshape(shape), assigned[layer].reshape(shape).sum(-1, keepdims=True)
            moves = ops.logical_and(assignments > 0.0, finite)
            step_mean = of_group * self.top_k / ops.maximum(assignments, 1.0)
            # Selected, not multiplied by 0: the sums of a step that overflowed may be NaN.
            moved = ops.select(
                ops.broadcast_to(moves, shape),
                cell.value_mean + self.rate * (step_mean - cell.value_mean),
                cell.value_mean * 1.0,
            )
            ops.assign(cell.value_mean, moved)
            largest = ops.maximum(largest, ops.abs(moved).max())
        return largest


def value_means(network: nn.Cell) -> List[ValueMean]:
    """The running means of all routers in `network`, in the order of its layers."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, ValueMean)]
