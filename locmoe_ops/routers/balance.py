"""Load balance in the selection: a bias for each expert, moved after every step towards what the load lacks.

The load-balancing loss has little grip on a gate without weights: it can only bend hidden states, and a softmax over block means is
nearly flat. A bias acts on the picks at once and on no gradient (loss-free balancing, Wang et al., arXiv 2408.15664). Ours in
combination with LocMoE, whose paper has none.

Shape legend: T tokens of this rank, n experts of a group, G groups, E = G * n experts, M sparse layers.
"""

from typing import List, Sequence

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.preference import Preference

# Far above any spread of probabilities that routing should overrule, and low enough that a local term at full strength still wins.
LIMIT = 0.5


class BalanceBias(Preference):
    """Adds a bias to the score of each expert of the token's group; the same on every rank.

    It is a parameter that no optimizer touches and that checkpoints keep; `BalanceUpdate` moves it.

    Inputs and output: as `Preference`.
    """

    def __init__(self, shape: RoutingShape) -> None:
        super().__init__()
        self.balance_bias = Parameter(Tensor(np.zeros((shape.num_groups, shape.per_group), np.float32)), name="balance_bias",
                                      requires_grad=False)

    def construct(self, rest: Tensor, home: Tensor, group: Tensor) -> Tensor:
        return rest + ops.gather(self.balance_bias, group, 0)


class BalanceUpdate(nn.Cell):
    """Moves the biases of all layers after a step: `b += rate * clip(1 - load / mean load, -1, 1)`, then |b| <= LIMIT.

    The load of an expert is the number of assignments to it, before drops, over all ranks; the mean is over its group. The published
    rule takes the sign of the same error; in proportion, a balanced expert is left alone.

    Args:
        biases: of the sparse layers, in order. rate: above 0.

    Inputs: assigned <float32>[M, E], summed over ranks; finite <bool> scalar: nothing moves where it is false. Output: the largest
    bias in size, <float32> scalar.
    """

    def __init__(self, biases: Sequence[BalanceBias], rate: float) -> None:
        super().__init__(auto_prefix=False)
        self.biases = nn.CellList(list(biases), auto_prefix=False)  # parameters keep the names that their routers give them
        self.rate = rate

    def construct(self, assigned: Tensor, finite: Tensor) -> Tensor:
        largest = Tensor(0.0, dtype.float32)
        rate = self.rate * ops.cast(finite, dtype.float32)
        for layer, bias in enumerate(self.biases):
            load = assigned[layer].reshape(bias.balance_bias.shape)
            lacking = 1.0 - load / ops.maximum(load.mean(-1, keep_dims=True), 1.0)
            moved = ops.clamp(bias.balance_bias + rate * ops.clamp(lacking, -1.0, 1.0), -LIMIT, LIMIT)
            ops.assign(bias.balance_bias, moved)
            largest = ops.maximum(largest, ops.abs(moved).max())
        return largest


def balance_biases(network: nn.Cell) -> List[BalanceBias]:
    """The biases of all routers in `network`, in the order of its layers."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, BalanceBias)]
