"""The MindSpore layer of a `Case` with any router, in one process."""

from __future__ import annotations

from compiled_layer import CompiledLayer, Differentiated, Objective, build_layer, build_router, load_parameters
from layer_cases import HIDDEN, Case, parameters_of

from mindspore import Tensor

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.moe import MultiLevelRouting
from locmoe_ops.routers.base import Router, RoutingShape
from locmoe_ops.routers.selection_bias import BalanceBias, LocalityBias, Sum


class CompiledRouter(CompiledLayer):
    """A layer of `tokens` tokens with the case's router, ready to run on batches."""

    def __init__(self, case: Case, collectives: Collectives, tokens: int) -> None:
        self.rank, self.topology = collectives.rank, collectives.topology
        self.placement = case.placed(self.topology.expert)
        self.layer = build_layer(case, collectives, tokens)
        self.layer.routing = MultiLevelRouting(case.spec.domain_groups, router_of(case, collectives))
        load_parameters(case, self.layer)
        objective = Objective(self.layer, self.topology.world_size)
        objective.set_train()
        self.step = Differentiated(objective)


def router_of(case: Case, collectives: Collectives) -> Router:
    """The router of the case with the selection biases that it asks for."""
    spec, shape = case.spec, RoutingShape(HIDDEN, case.experts, case.groups, case.top_k)
    biases = []
    if case.local_term != "none":
        biases.append(LocalityBias(case.local_term, shape, case.layout, spec.placement, case.local_strength))
    if case.balanced:
        bias = BalanceBias(shape)
        bias.balance_bias.set_data(Tensor(parameters_of(case).balance.reshape(case.groups, -1)))
        biases.append(bias)
    return build_router(case, collectives, Sum(biases) if biases else None)
