"""The sums of a step as one vector, which is accumulated over micro-batches and summed over ranks with the gradients.

Shape legend: M sparse layers, E experts, B bins, Q nodes that the experts of one token can be on.
"""

from dataclasses import dataclass, fields
from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor, nn, ops

from locmoe_ops.errors import CollectiveError
from locmoe_ops.routers.balance import PIDUpdate, QuantileUpdate, SignUpdate
from locmoe_ops.routers.centring import CentreUpdate, ValueMean
from locmoe_ops.routers.selection_bias import BalanceBias, BalanceUpdate
from pangu_sigma.config.schema import RouterConfig
from pangu_sigma.model.objective import ObjectiveSums
from pangu_sigma.model.pangu_sigma import PanGuSigma


@dataclass(frozen=True)
class ExtraSums:
    """Which sums of `Objective` there are besides those of every network, as the network's attributes of these names
    say.

    Attributes:
        counts_undecided: whether there is `undecided`. sums_values: whether there is `value_sums`.
        limits_rows: whether there is `beyond_limit`.
        required_bins: B, of the histograms of `required`; 0: there are none.
        most_nodes: Q, of `tokens_by_nodes`; 0: there is none. counts_copies: whether there is `copies`.
    """

    counts_undecided: bool = False
    sums_values: bool = False
    limits_rows: bool = False
    required_bins: int = 0
    most_nodes: int = 0
    counts_copies: bool = False

    @classmethod
    def of(cls, network: PanGuSigma) -> "ExtraSums":
        """Those of `network`."""
        return cls(**{one.name: getattr(network, one.name) for one in fields(cls)})


class Statistics:
    """Where each sum of `Objective` lies in the vector that `pack_statistics` makes of them.

    Args:
        sparse_layers: M; 0 counts as one layer of one expert, as `Objective` reports it.
        num_experts: E.
        extra: which sums there are besides those of every network.

    Attributes:
        size: numbers of the vector.
        assigned, value_sums: the ranges of the vector that hold the tokens of each expert, and the sums of its gate
            values (empty where there are none), <float32>[M * E] each.
        required: the range of the histograms, <float32>[M * E * B], empty where there are none.
        layers, experts: M and E of that range.
    """

    SCALARS = ("tokens", "task", "aux", "locality")

    def __init__(self, sparse_layers: int, num_experts: int, extra: ExtraSums = ExtraSums()) -> None:
        self.layers, self.experts = (sparse_layers, num_experts) if sparse_layers else (1, 1)
        start = len(self.SCALARS)
        self.assigned = range(start, start + self.layers * self.experts)
        self._per_layer = (
            "kept",
            "kept_local",
            *["undecided"] * extra.counts_undecided,
            *["copies"] * extra.counts_copies,
        )
        start = self.assigned.stop + self.layers * len(self._per_layer)
        self.value_sums = range(start, start + extra.sums_values * self.layers * self.experts)
        start = self.value_sums.stop
        self.required = range(start, start + self.layers * self.experts * extra.required_bins)
        self._beyond_limit = range(self.required.stop, self.required.stop + extra.limits_rows)
        start = self._beyond_limit.stop
        self._by_nodes = range(start, start + self.layers * extra.most_nodes)
        self.size = self._by_nodes.stop

    def unpack(self, vector: np.ndarray) -> Dict[str, np.ndarray]:
        """Scalars by name; assigned [M, E]; kept, kept_local and, where they are counted, undecided and copies [M];
        value_sums [M, E], the scalar beyond_limit and tokens_by_nodes [M, Q], where there are any. Histograms are for
        the step alone, and left out.
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
            **({"beyond_limit": vector[self._beyond_limit.start]} if self._beyond_limit else {}),
            **({"tokens_by_nodes": by_nodes} if by_nodes.size else {}),
        }


def pack_statistics(sums: ObjectiveSums) -> Tensor:
    """The vector of `Statistics` <float32>[size] from `Objective`'s sums, inside a graph."""
    scalars = ops.stack((sums["tokens"], sums["task"], sums["aux"], sums["locality"]))
    # (M * E,) <- (M, E)
    vectors: Tuple[Tensor, ...] = (scalars, sums["assigned"].reshape(-1), sums["kept"], sums["kept_local"])
    if "undecided" in sums:
        vectors += (sums["undecided"],)
    if "copies" in sums:
        vectors += (sums["copies"],)
    if "value_sums" in sums:
        vectors += (sums["value_sums"].reshape(-1),)  # (M * E,) <- (M, E)
    if "required" in sums:
        vectors += (sums["required"].reshape(-1),)  # (M * E * B,) <- (M, E * B)
    if "beyond_limit" in sums:
        vectors += (sums["beyond_limit"].reshape(1),)  # (1,) <- ()
    if "tokens_by_nodes" in sums:
        vectors += (sums["tokens_by_nodes"].reshape(-1),)  # (M * Q,) <- (M, Q)
    # (size,) <- (4,), (M * E,), (M,), (M,), (M,), (M,), (M * E,), (M * E * B,), (1,), (M * Q,)
    return ops.concat(vectors)


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


def balance_update(biases: Sequence[BalanceBias], router: RouterConfig) -> nn.Cell:
    """What moves the balance biases of all layers after a step, by the rule that `router` asks for.

    Args:
        biases: of the sparse layers that have one, in order. router: `moe.router`, which they were made by.
    """
    balance = router.balance
    if balance.kind == "sign":
        return SignUpdate(biases, balance.rate)
    if balance.kind == "pid":
        return PIDUpdate(biases, balance.rate, balance.proportional, balance.derivative)
    return QuantileUpdate(biases) if balance.kind == "quantile" else BalanceUpdate(biases, router.balance_rate)


class RowsOfLayers(nn.Cell):
    """Of what is known of all sparse layers, the rows of some.

    Args:
        layers: their numbers, ascending. of: M, how many there are.

    Input: <float32>[M, E]. Output: <float32>[len(layers), E]; or with other rows, as long.
    """

    def __init__(self, layers: Sequence[int], of: int) -> None:
        super().__init__(auto_prefix=False)
        self.every, self.of = len(layers) == of, of
        self.layers = Tensor(np.asarray(layers, np.int32))

    def construct(self, values: Tensor) -> Tensor:
        return values if self.every else ops.gather(values, self.layers, 0)  # (len(layers), E) <- (M, E)


class Rebalance(nn.Cell):
    """Moves the routers' balance biases by what a step's tokens did.

    Args:
        update: moves the biases of all layers that have one by one of the sums of `Statistics`, row by row of a layer,
            as `BalanceUpdate` does by the loads.
        place: the range of the vector with these sums, of all layers.
        rows: takes those of the layers that have a bias.

    Inputs: vector <float32>[size], statistics summed over ranks; finite <bool> scalar. Output: as `BalanceUpdate`.
    """

    def __init__(self, update: nn.Cell, place: range, rows: RowsOfLayers) -> None:
        super().__init__(auto_prefix=False)
        self.start, self.end, self.layers = place.start, place.stop, rows.of
        self.update, self.rows = update, rows

    def construct(self, vector: Tensor, finite: Tensor) -> Tensor:
        sums = vector[self.start : self.end].reshape(self.layers, -1)  # (M, E...) <- (M * E...,)
        return self.update(self.rows(sums), finite)


class Recentre(nn.Cell):
    """Moves the running means of the routers' gate values by those of a step.

    Args:
        means: of the sparse layers that have one, in order. rate, top_k: see `CentreUpdate`.
        statistics: where sums and tokens are in the vector.
        layers: numbers of these layers.

    Inputs: vector <float32>[size], statistics summed over ranks; finite <bool> scalar. Output: as `CentreUpdate`.
    """

    def __init__(
        self, means: Sequence[ValueMean], rate: float, top_k: int, statistics: Statistics, layers: Sequence[int]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.rows = RowsOfLayers(layers, statistics.layers)
        self.shape = (statistics.layers, statistics.experts)
        self.assigned = (statistics.assigned.start, statistics.assigned.stop)
        self.sums = (statistics.value_sums.start, statistics.value_sums.stop)
        self.update = CentreUpdate(means, rate, top_k)

    def construct(self, vector: Tensor, finite: Tensor) -> Tensor:
        sums = vector[self.sums[0] : self.sums[1]].reshape(self.shape)  # (M, E) <- (M * E,)
        assigned = vector[self.assigned[0] : self.assigned[1]].reshape(self.shape)  # (M, E) <- (M * E,)
        return self.update(self.rows(sums), self.rows(assigned), finite)


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
