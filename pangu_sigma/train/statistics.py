"""The sums of a step as one vector, which is accumulated over micro-batches and summed over ranks with the gradients.

Shape legend: M sparse layers, E experts.
"""

from typing import Dict, Sequence, Tuple

import numpy as np

from mindspore import Tensor, nn, ops

from locmoe_ops.routers.selection_bias import BalanceBias, BalanceUpdate
from pangu_sigma.model.objective import ObjectiveSums


class Statistics:
    """Where each sum of `Objective` lies in the vector that `pack_statistics` makes of them.

    Args:
        sparse_layers: M; 0 counts as one layer of one expert, as `Objective` reports it.
        num_experts: E.
        counts_undecided: whether the sums hold `undecided`, as the network's `counts_undecided` says.

    Attributes:
        size: numbers of the vector.
        assigned: the range of the vector that holds the tokens of each expert, <float32>[M * E].
        layers, experts: M and E of that range.
    """

    SCALARS = ("tokens", "task", "aux", "locality")

    def __init__(self, sparse_layers: int, num_experts: int, counts_undecided: bool = False) -> None:
        self.layers, self.experts = (sparse_layers, num_experts) if sparse_layers else (1, 1)
        start = len(self.SCALARS)
        self.assigned = range(start, start + self.layers * self.experts)
        self._per_layer = ("kept", "kept_local", "undecided") if counts_undecided else ("kept", "kept_local")
        self.size = self.assigned.stop + self.layers * len(self._per_layer)

    def unpack(self, vector: np.ndarray) -> Dict[str, np.ndarray]:
        """Scalars by name; assigned [M, E]; kept, kept_local and, where it is counted, undecided [M]."""
        assigned = vector[self.assigned.start : self.assigned.stop]
        per_layer = vector[self.assigned.stop :].reshape(-1, self.layers)
        return {
            **{name: vector[i] for i, name in enumerate(self.SCALARS)},
            "assigned": assigned.reshape(self.layers, self.experts),
            **dict(zip(self._per_layer, per_layer)),
        }


def pack_statistics(sums: ObjectiveSums) -> Tensor:
    """The vector of `Statistics` <float32>[size] from `Objective`'s sums, inside a graph."""
    scalars = ops.stack((sums["tokens"], sums["task"], sums["aux"], sums["locality"]))
    # (M * E,) <- (M, E)
    vectors: Tuple[Tensor, ...] = (scalars, sums["assigned"].reshape(-1), sums["kept"], sums["kept_local"])
    if "undecided" in sums:
        vectors += (sums["undecided"],)
    return ops.concat(vectors)  # (size,) <- (4,), (M * E,), (M,), (M,), (M,)


class Rebalance(nn.Cell):
    """Moves the routers' balance biases by the loads of a step.

    Args:
        biases: of the sparse layers, in order.
        rate: see `BalanceUpdate`.
        statistics: where the loads are in the vector.

    Inputs: vector <float32>[size], statistics summed over ranks; finite <bool> scalar. Output: as `BalanceUpdate`.
    """

    def __init__(self, biases: Sequence[BalanceBias], rate: float, statistics: Statistics) -> None:
        super().__init__(auto_prefix=False)
        self.shape = (statistics.layers, statistics.experts)
        self.start, self.end = statistics.assigned.start, statistics.assigned.stop
        self.update = BalanceUpdate(biases, rate)

    def construct(self, vector: Tensor, finite: Tensor) -> Tensor:
        return self.update(vector[self.start : self.end].reshape(self.shape), finite)  # (M, E) <- (M * E,)
