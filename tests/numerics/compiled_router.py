"""The MindSpore layer of a `Case` with any router, in one process."""

from __future__ import annotations

from compiled_layer import CompiledLayer, Differentiated, Objective, build_layer, load_parameters
from layer_cases import HIDDEN, Case, parameters_of

from mindspore import Tensor

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.moe import MultiLevelRouting
from locmoe_ops.routers.base import Router, RoutingShape
from locmoe_ops.routers.etr import ETRRouter
from locmoe_ops.routers.faster_moe import FasterMoERouter
from locmoe_ops.routers.gated import LossWeights
from locmoe_ops.routers.gshard import GShardRouter
from locmoe_ops.routers.locmoe import LocMoERouter, Ties
from locmoe_ops.routers.selection_bias import BalanceBias, LocalityBias, Sum
from locmoe_ops.routers.switch import SwitchRouter
from locmoe_ops.routers.ta_moe import TAMoERouter

SALT = 3
NOISE_SCALE = 0.7  # a gate value of the cases is of order 1


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
    """The router of the case, with weights of its own."""
    spec, shape = case.spec, RoutingShape(HIDDEN, case.experts, case.groups, case.top_k)
    plain = (shape, case.layout, collectives, "moe")
    placed = (shape, case.layout, spec.placement, collectives, "moe")
    terms = []
    if case.local_term != "none":
        terms.append(LocalityBias(case.local_term, shape, case.layout, spec.placement, case.local_strength))
    if case.balanced:
        bias = BalanceBias(shape)
        bias.balance_bias.set_data(Tensor(parameters_of(case).balance.reshape(case.groups, -1)))
        terms.append(bias)
    preference = Sum(terms) if terms else None
    weights = LossWeights(spec.alpha, spec.mu, spec.smoothing)
    builders = {
        "switch": lambda: SwitchRouter(*plain, case.statistics, spec.alpha, preference=preference),
        "locmoe": lambda: LocMoERouter(
            *placed,
            case.gate,
            case.statistics,
            spec.alpha,
            spec.mu,
            spec.smoothing,
            preference,
            ties=Ties(case.ties, NOISE_SCALE, SALT),
        ),
        "gshard": lambda: GShardRouter(*plain, case.statistics, spec.alpha, SALT, preference),
        "faster_moe": lambda: FasterMoERouter(*placed, case.max_remote_fraction, case.statistics, spec.alpha),
        "ta_moe": lambda: TAMoERouter(*placed, spec.bandwidth_ratio, case.statistics, spec.alpha, preference),
        "etr": lambda: ETRRouter(*placed, spec.temperature, weights, case.statistics, preference),
    }
    return builders[case.router]()
