"""The forward pass of evaluation: its sums, and what the routers see, which are the tokens that enter them, where those
go, and the gate weights they are compared with.

Shape legend: M sparse layers, T tokens of this rank, d hidden size, k choices, E experts, G groups, n = E / G.
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.capacity.delta import cosines
from locmoe_ops.routers.base import Router
from locmoe_ops.routers.gated import GatedRouter
from pangu_sigma.model.inputs import unpack_batch
from pangu_sigma.model.objective import Objective
from pangu_sigma.model.pangu_sigma import sparse_layers
from pangu_sigma.train.statistics import pack_statistics


@dataclass(frozen=True)
class RoutedTokens:
    """One sparse layer's tokens, on the host. A token or gate that is not finite has no direction: it is 0 here.

    Attributes:
        x: <float32>[T, d], as the router sees it.
        expert: <int32>[T, k], global ids.
        gates: <float32>[G, n, d], or None where the router has no gate weights.
        per_group: n.
    """

    x: np.ndarray
    expert: np.ndarray
    gates: Optional[np.ndarray]
    per_group: int

    @property
    def choice(self) -> np.ndarray:
        """<int32>[T, k]: experts within the token's group."""
        return self.expert % self.per_group

    def token_gate(self) -> np.ndarray:
        """<float64>[T, n]: each token's cosines with the gate weights of its group. Only where there are gates."""
        assert self.gates is not None
        found = np.empty((len(self.x), self.per_group))
        group = self.expert[:, 0] // self.per_group
        for number in np.unique(group):
            found[group == number] = cosines(self.x[group == number], self.gates[number])
        return found


class EvaluationStep(nn.Cell):
    """Forward of one batch, and the routes that its tokens took. One graph serves validation and the measurements of
    capacity and cosines.

    Inputs: the tensors of `BATCH_FIELDS`. Outputs: this rank's statistics <float32>[size]; x <float32>[M, T, d], what
    enters the routers; expert <int32>[M, T, k]. A dense network has one layer, of no tokens. Where layers have routers
    of their own (`moe.routers`), what enters them may have other sizes: x is then a tuple of M tensors.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(auto_prefix=False)
        self.objective = objective

    def construct(self, *fields: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        batch = unpack_batch(*fields)
        logits, reports = self.objective.forward(batch)
        _, sums = self.objective.total(logits, reports, batch, Tensor(1.0, dtype.float32))
        x, expert = ops.zeros((1, 0, 1), dtype.float32), ops.zeros((1, 0, 1), dtype.int32)
        if reports:
            x = self.gate_inputs(reports)
            expert = ops.stack([report["expert"] for report in reports])  # (M, T, k) <- M x (T, k)
        return pack_statistics(sums), x, expert

    def gate_inputs(self, reports: List[Dict[str, Tensor]]) -> Union[Tensor, Tuple[Tensor, ...]]:
        """What enters the routers of the layers that `reports` are of."""
        if self.objective.network.routers_differ:
            apart: Tuple[Tensor, ...] = ()
            for report in reports:
                apart += (report["gate_input"],)
            return apart
        return ops.stack([report["gate_input"] for report in reports])  # (M, T, d) <- M x (T, d)

    def routed(self, fields: Sequence[Tensor]) -> List[RoutedTokens]:
        """The layers' tokens, bottom up; of a network with experts. Every rank must call it: tokens travel."""
        network = self.objective.network
        network.set_train(False)
        _, inputs, chosen = self(*fields)
        x, expert = [layer.asnumpy() for layer in inputs], chosen.asnumpy()
        routers = [layer.routing.router for layer in sparse_layers(network)]
        return [
            RoutedTokens(_finite(x[i]), expert[i], gate_weights(router), router.per_group)
            for i, router in enumerate(routers)
        ]


def gate_weights(router: Router) -> Optional[np.ndarray]:
    """<float32>[G, n, d]: the gate's row of each expert, or None for a router without a gate."""
    if not isinstance(router, GatedRouter):
        return None
    if not hasattr(router.gate, "weight"):
        return None  # its values come about in some other way
    rows = _finite(router.gate.weight.asnumpy())
    if len(rows) < router.num_experts:  # a fixed gate: the same rows for every group
        rows = np.tile(rows, (router.num_groups, 1))  # (E, d) <- (n, d)
    return rows.reshape(router.num_groups, router.per_group, -1)  # (G, n, d) <- (E, d)


def _finite(vectors: np.ndarray) -> np.ndarray:
    """<float32>[..., d], with zeros for vectors that hold anything but finite numbers."""
    return np.where(np.isfinite(vectors).all(-1, keepdims=True), vectors, 0.0).astype(np.float32)
