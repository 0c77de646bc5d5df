"""The sums of a step as one vector, which is accumulated over micro-batches and summed over ranks with the gradients.

Shape legend: M sparse layers, E experts, Q nodes that the experts of one token can be on.
"""

from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor, nn, ops

from locmoe_ops.errors import CollectiveError
from locmoe_ops.routers.centring import CentreUpdate, ValueMean
from locmoe_ops.routers.selection_bias import BalanceBias, BalanceUpdate
from pangu_sigma.model.objective import ObjectiveSums


class Statistics:
    """Where each sum of `Objective` lies in the vector that `pack_statistics` makes of them.

    Args:
        sparse_layers: M; 0 counts as one layer of one expert, as `Objective` reports it.
        num_experts: E.
        counts_undecided: whether the sums hold `undecided`, as the network's `counts_undecided` says.
        sums_values: whether they hold `value_sums`, as its `sums_values` says.
        limits_rows: whether they hold `beyond_limit`, as its `limits_rows` says.
        most_nodes: Q, as its `most_nodes` says; 0: they do not hold `tokens_by_nodes`.

    Attributes:
        size: numbers of the vector.
        assigned, value_sums: the ranges of the vector that hold the tokens of each expert, and the sums of its gate
            values (empty where there are none), <float32>[M * E] each.
        layers, experts: M and E of that range.
    """

    SCALARS = ("tokens", "task", "aux", "locality")

    def __init__(
        self,
        sparse_layers: int,
        num_experts: int,
        counts_undecided: bool = False,
        sums_values: bool = False,
        limits_rows: bool = False,
        most_nodes: int = 0,
    ) -> None:
        self.layers, self.experts = (sparse_layers, num_experts) if sparse_layers else (1, 1)
        start = len(self.SCALARS)
        self.assigned = range(start, start + self.layers * self.experts)
        self._per_layer = ("kept", "kept_local", "undecided") if counts_undecided else ("kept", "kept_local")
        start = self.assigned.stop + self.layers * len(self._per_layer)
        self.value_sums = range(start, start + sums_values * self.layers * self.experts)
        self._limits_rows = limits_rows
        start = self.value_sums.stop + limits_rows
        self._by_nodes = range(start, start + self.layers * most_nodes)
        self.size = self._by_nodes.stop

    def unpack(self, vector: np.ndarray) -> Dict[str, np.ndarray]:
        """Scalars by name; assigned [M, E]; kept, kept_local and, where it is counted, undecided [M]; value_sums
        [M, E], the scalar beyond_limit and tokens_by_nodes [M, Q], where there are any.
        """
        by_expert = {"assigned": self.assigned, **({"value_sums": self.value_sums} if self.value_sums else {})}
        per_layer = vector[self.assigned.stop : self.value_sums.start].reshape(-1, self.layers)
        by_nodes = vector[self._by_nodes.start : self._by_nodes.stop].reshape(self.layers, -1)  # (M, Q) <- (M * Q,)
        return {
            **{name: vector[i] for i, name in enumerate(self.SCALARS)},
            **{
                name: vector[place.start : place.stop].reshape(self.layers, self.experts)
                for name, place in by_expert.items()
            },
            **dict(zip(self._per_layer, per_layer)),
            **({"beyond_limit": vector[self.value_sums.stop]} if self._limits_rows else {}),
            **({"tokens_by_nodes": by_nodes} if by_nodes.size else {}),
        }


def pack_statistics(sums: ObjectiveSums) -> Tensor:
    """The vector of `Statistics` <float32>[size] from `Objective`'s sums, inside a graph."""
    scalars = ops.stack((sums["tokens"], sums["task"], sums["aux"], sums["locality"]))
    # (M * E,) <- (M, E)
    vectors: Tuple[Tensor, ...] = (scalars, sums["assigned"].reshape(-1), sums["kept"], sums["kept_local"])
    if "undecided" in sums:
        vectors += (sums["undecided"],)
    if "value_sums" in sums:
        vectors += (sums["value_sums"].reshape(-1),)  # (M * E,) <- (M, E)
    if "beyond_limit" in sums:
        vectors += (sums["beyond_limit"].reshape(1),)  # (1,) <- ()
    if "tokens_by_nodes" in sums:
        vectors += (sums["tokens_by_nodes"].reshape(-1),)  # (M * Q,) <- (M, Q)
    return ops.concat(vectors)  # (size,) <- (4,), (M * E,), (M,), (M,), (M,), (M * E,), (1,), (M * Q,)


def check_row_limit(sums: Dict[str, np.ndarray], limit: Optional[float], where: str) -> None:
    """Ends the job on all ranks alike where more rows came to any of them than it has room for: what was computed with
    them is void, and a graph cannot say so. On the tcp backend the exchange itself has ended the job by then.

    Args:
        sums: over all ranks, of `Statistics.unpack`.
        limit: `moe.dispatch.ragged_limit`. where: step or validation, for the message.

    Raises:
        CollectiveError: there were such rows.
    """
    rows = float(sums.get("beyond_limit", np.zeros(())))
    if rows != 0.0:  # NaN counts too
        raise CollectiveError(
            f"{where}: {rows:,.0f} rows came to ranks beyond the room that moe.dispatch.ragged_limit ({limit}) leaves, "
            "summed over layers and ranks; raise moe.dispatch.ragged_limit"
        )


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
        return self.update(vector[self.start : self.end].reshape(self.layers, -1), finite)  # (M, E...) <- (M * E...,)


class Recentre(nn.Cell):
    """Moves the running means of the routers' gate values by those of a step.

    Args:
        means: of the sparse layers, in order. rate, top_k: see `CentreUpdate`.
        statistics: where sums and tokens are in the vector.

    Inputs: vector <float32>[size], statistics summed over ranks; finite <bool> scalar. Output: as `CentreUpdate`.
    """

    def __init__(self, means: Sequence[ValueMean], rate: float, top_k: int, statistics: Statistics) -> None:
        super().__init__(auto_prefix=False)
        self.shape = (statistics.layers, statistics.experts)
        self.assigned = (statistics.assigned.start, statistics.assigned.stop)
        self.sums = (statistics.value_sums.start, statistics.value_sums.stop)
        self.update = CentreUpdate(means, rate, top_k)

    def construct(self, vector: Tensor, finite: Tensor) -> Tensor:
        sums = vector[self.sums[0] : self.sums[1]].reshape(self.shape)  # (M, E) <- (M * E,)
        assigned = vector[self.assigned[0] : self.assigned[1]].reshape(self.shape)  # (M, E) <- (M * E,)
        return self.update(sums, assigned, finite)


class AfterStep(nn.Cell):
    """What moves the routers' own state after a step, one after the other.

    Args:
        moves: `Rebalance`, `Recentre`.

    Inputs: as theirs. Output: the sum of their outputs, <float32> scalar.
    """

    def __init__(self, moves: Sequence[nn.Cell]) -> None:
        super().__init__(auto_prefix=False)
        self.moves = nn.CellList(list(moves), auto_prefix=False)

    def construct(self, vector: Tensor, finite: Tensor) -> Tensor:
        total = Tensor(0.0, vector.dtype)
        for move in self.moves:
            total = total + move(vector, finite)
        return total
