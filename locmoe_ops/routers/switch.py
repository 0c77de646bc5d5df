"""The declaration of Switch Transformers' router, whose Cells are in `locmoe_ops.routers.gated`."""

from dataclasses import dataclass

from locmoe_ops.keys import key
from locmoe_ops.router_registry import TERMS, RouterKind, dense_gate_cost
from locmoe_ops.routers.base import Router
from locmoe_ops.routers.context import RouterRequest
from locmoe_ops.routers.gated import SwitchRouter


@dataclass(frozen=True)
class SwitchOptions:
    aux_loss_weight: float = key(0.01, "alpha of the load-balancing loss", minimum=0.0)
    jitter: float = key(0.0, "inputs of the gate are multiplied by uniform(1-jitter, 1+jitter) in training",
                        minimum=0.0, maximum=0.5)


ROUTER = RouterKind(SwitchOptions, terms=TERMS, second_experts=True, gate_weights=True, cost=dense_gate_cost)


def build(request: RouterRequest) -> Router:
    own = request.own
    return SwitchRouter(*request.surroundings, request.statistics, own.aux_loss_weight, own.jitter, request.salt, request.preference)
