"""The declaration of Switch Transformers' router, whose Cells are in `locmoe_ops.routers.gated`."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.keys import key
from locmoe_ops.random import SeededUniform
from locmoe_ops.router_registry import TERMS, RouterSpec, dense_gate_cost
from locmoe_ops.routers.base import Router, RoutingShape, RoutingStatistics
from locmoe_ops.routers.context import RouterContext
from locmoe_ops.routers.gated import GatedRouter
from locmoe_ops.routers.gates import DenseGate
from locmoe_ops.routers.losses import load_balancing_loss
from locmoe_ops.routers.selection_bias import SelectionBias
from locmoe_ops.topology import Topology


@dataclass(frozen=True)
class SwitchOptions:
    aux_loss_weight: float = key(0.01, "alpha of the load-balancing loss", minimum=0.0)
    jitter: float = key(
        0.0, "inputs of the gate are multiplied by uniform(1-jitter, 1+jitter) in training", minimum=0.0, maximum=0.5
    )


ROUTER = RouterSpec(SwitchOptions, terms=TERMS, second_experts=True, gate_weights=True, cost=dense_gate_cost)


def build(request: RouterContext) -> Router:
    own = request.own
    return SwitchRouter(
        *request.surroundings, request.statistics, own.aux_loss_weight, own.jitter, request.salt, request.preference
    )


class SwitchRouter(GatedRouter):
    """Switch Transformers' router (arXiv 2101.03961): learned gate, input jitter in training, load-balancing loss.

    Args:
        aux_loss_weight: alpha. statistics: segment of the loss's f and P (see `RoutingStatistics`).
        jitter: the gate's input is multiplied by uniform(1 - jitter, 1 + jitter) in training.
        salt: tells the jitter of layers apart. preference: see `GatedRouter`.
    """

    def __init__(
        self,
        shape: RoutingShape,
        layout: Topology,
        collectives: Collectives,
        tag: str,
        statistics: str = "global",
        aux_loss_weight: float = 0.01,
        jitter: float = 0.0,
        salt: int = 0,
        preference: Optional[SelectionBias] = None,
    ) -> None:
        super().__init__(shape, DenseGate(shape.num_experts, shape.num_groups, shape.hidden_size), preference)
        self.aux_loss_weight = aux_loss_weight
        self.jitter = jitter
        self.uniform = SeededUniform(shape.hidden_size, salt) if jitter > 0.0 else nn.Identity()
        self.sums = RoutingStatistics(shape, statistics, layout, collectives, tag)

    def prepare(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        x = ops.cast(x, dtype.float32)
        if self.jitter == 0.0 or not self.training:
            return x
        return x * (1.0 + self.jitter * (2.0 * self.uniform(tokens["seed"]) - 1.0))

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        return load_balancing_loss(counts, sums, self.num_groups) * self.aux_loss_weight, Tensor(0.0, dtype.float32)
