"""The MindSpore layer of a `Case` on one rank, and what it computes, as NumPy arrays."""

from __future__ import annotations

import numpy as np
from layer_cases import HIDDEN, INNER, Case, parameters_of

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.flat import FlatDispatcher
from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities
from locmoe_ops.dispatch.hierarchical import HierarchicalDispatcher
from locmoe_ops.dispatch.node_dedup import NodeDedupDispatcher
from locmoe_ops.experts import ExpertBank, ExpertKernels
from locmoe_ops.moe import MoEFeedForward, MultiLevelRouting, shared_network
from locmoe_ops.reference.spec import RankTokens, SharedWeights
from locmoe_ops.router_registry import router_spec
from locmoe_ops.routers.base import Router, RouterContext, RoutingShape, make_router
from locmoe_ops.routers.hash import HashRouter
from locmoe_ops.routers.second import SecondExpert
from locmoe_ops.routers.specs.hash import HashOptions
from locmoe_ops.topology import local_experts_table

NOISE_SCALE = 0.7  # a gate value of the cases is of order 1
OUTPUTS = (
    "y",
    "aux_loss",
    "locality_loss",
    "assigned",
    "kept",
    "kept_local",
)
SOMETIMES = ("undecided", "tokens_by_nodes")  # of locmoe alone; where a token's experts can be on several nodes


class Objective(nn.Cell):
    """This rank's share of `sum over ranks <dy, y> + aux_loss + locality_loss`."""

    def __init__(self, layer: MoEFeedForward, ranks: int) -> None:
        super().__init__()
        self.layer = layer
        self.share = 1.0 / ranks

    def construct(self, x, ids, domain, home, seed, dy):
        y, report = self.layer(x, {"ids": ids, "domain": domain, "home": home, "seed": seed})
        losses = report["aux_loss"] + report["locality_loss"]
        return (y * dy).sum() + losses * self.share, y, report


class Differentiated(nn.Cell):
    """Outputs in the order of `OUTPUTS` and `SOMETIMES`, and all gradients, in one graph.

    Tensors come and go one by one: a dict that enters a graph is a constant of it, one that leaves it makes MindSpore
    run parts of it in Python.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(auto_prefix=False)
        self.objective = objective
        self.parameters = ParameterTuple(objective.trainable_params())
        self.differentiate = ops.value_and_grad(objective, 0, self.parameters, has_aux=True)

    def construct(self, x, ids, domain, home, seed, dy):
        (_, y, report), gradients = self.differentiate(x, ids, domain, home, seed, dy)
        outputs = (
            y,
            report["aux_loss"],
            report["locality_loss"],
            report["assigned"],
            report["kept"],
            report["kept_local"],
        )
        if "undecided" in report:
            outputs += (report["undecided"],)
        if "tokens_by_nodes" in report:
            outputs += (report["tokens_by_nodes"],)
        return outputs, gradients


class CompiledLayer:
    """A layer of `tokens` tokens a rank, ready to run on batches."""

    def __init__(self, case: Case, collectives: Collectives, tokens: int) -> None:
        self.rank, self.topology = collectives.rank, collectives.topology
        self.placement = case.placed(self.topology.expert)
        layer = build_layer(case, collectives, tokens)
        load_parameters(case, layer)
        objective = Objective(layer, self.topology.world_size)
        objective.set_train()
        self.step = Differentiated(objective)

    def run(self, tokens: RankTokens, gradient: np.ndarray, seeds: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Outputs, losses, sums and gradients by name; gradients of parameters as `gradient/NAME`. seeds <int>[T];
        None: zeros.
        """
        given = (tokens.token_ids, tokens.domain, tokens.home, np.zeros_like(tokens.home) if seeds is None else seeds)
        outputs, (x_gradient, gradients) = self.step(
            Tensor(tokens.x), *(Tensor(array, ms.int32) for array in given), Tensor(gradient)
        )
        layer = self.step.objective.layer
        there = (layer.routing.router.counts_undecided, layer.most_nodes > 0)
        names = OUTPUTS + tuple(name for name, is_there in zip(SOMETIMES, there) if is_there)
        named = {
            f"gradient/{short_name(parameter.name)}": array for parameter, array in zip(self.step.parameters, gradients)
        }
        results = {**dict(zip(names, outputs)), "gradient/x": x_gradient, **named}
        return {name: tensor.asnumpy() for name, tensor in results.items()}


def short_name(name: str) -> str:
    """The last word of a parameter's name; of shared experts, whose network is a sequence, the last two."""
    return name.rpartition(".shared_experts.")[2] if ".shared_experts." in name else name.rsplit(".", 1)[-1]


def as_one_network(shared: SharedWeights) -> dict[str, np.ndarray]:
    """Weights of m networks of f inner features as those of one of m f, by the names of its sequence, or gradients of
    weights; of the output's bias, which they share, each network's own gradient is the whole one's.
    """
    count, hidden, inner = shared.w1.shape
    return {
        "0.weight": shared.w1.transpose(0, 2, 1).reshape(count * inner, hidden),
        "0.bias": shared.b1.reshape(-1),
        "2.weight": shared.w2.transpose(2, 0, 1).reshape(hidden, count * inner),
        "2.bias": shared.b2.sum(0),
    }


def build_layer(case: Case, collectives: Collectives, tokens: int) -> MoEFeedForward:
    topology = collectives.topology
    placement, spec = case.placed(topology.expert), case.spec
    capacities = FixedCapacities(case.capacity, (case.capacity, case.far_capacity or 0), case.copies)
    options = DispatchOptions(drop_priority=case.priority, overflow=case.overflow)
    setup = DispatchSetup(topology, placement, tokens, case.top_k, capacities, options)
    kind = FlatDispatcher if case.far_capacity is None else HierarchicalDispatcher
    kind = kind if case.copies is None else NodeDedupDispatcher
    local = placement.local_experts(topology.ep_index(collectives.rank))
    layer = MoEFeedForward(
        routing=MultiLevelRouting(spec.domain_groups, build_router(case, collectives)),
        dispatcher=kind(collectives, setup, "moe"),
        experts=ExpertBank(
            local, HIDDEN, INNER, case.activation, ExpertKernels(ms.float16 if case.half else ms.float32)
        ),
        scale_by_gate=case.scale_by_gate,
        local=local_experts_table(case.layout, spec.placement),
    )
    if case.shared:
        layer.add_shared_experts(shared_network(HIDDEN, case.shared * INNER, case.activation, seed=0))
    return layer


def build_router(case: Case, collectives: Collectives, selection_bias: nn.Cell | None = None) -> Router:
    """The router of the case, with weights of its own."""
    spec, shape = case.spec, RoutingShape(HIDDEN, case.experts, case.groups, case.top_k)
    if case.router == "hash":
        by_gate = case.hash_score != "none"
        score = {"score": case.hash_score, "renormalise": case.hash_renormalise, "scale": case.hash_scale}
        weights = HashOptions(weights="gate", **score) if by_gate else HashOptions()
        return HashRouter(shape, parameters_of(case).table, weights)
    localising = {"locality_loss_weight": spec.mu, "locality_smoothing": spec.smoothing}
    noise = {"noise_scale": NOISE_SCALE} if case.noisy else {}
    centred = {"centre_rate": 0.1} if case.centred else {}
    divergence = {"divergence_loss_weight": case.divergence}
    values = {"normalise": case.normalise, "value_scale": case.value_scale, "rectify": case.rectify}
    options = {
        "locmoe": {"gate": case.gate, "ties": case.ties, **noise, **centred, **values, **divergence, **localising},
        "etr": {
            "temperature": spec.temperature,
            "expert_choice_start_step": 0 if case.expert_choice else None,
            **localising,
        },
        "faster_moe": {
            "max_remote_fraction": case.max_remote_fraction,
            "rule": "fastmoe" if case.library_cap else "ours",
        },
        "smile": {"num_nodes": case.num_nodes, "node_loss_weight": spec.alpha, "expert_loss_weight": spec.beta},
        "ta_moe": {"bandwidth_ratio": spec.bandwidth_ratio},
        **topk_options(case),
    }.get(case.router, {})
    balance = {} if case.router == "smile" else {"aux_loss_weight": spec.alpha}
    router = make_router(
        RouterContext(
            case.router,
            router_spec(case.router).options(**balance, **options),
            shape,
            case.layout,
            spec.placement,
            collectives,
            statistics=case.statistics,
            selection_bias=selection_bias,
            sequence_length=case.rules.sequence_length,
            domains=len(spec.domain_groups),
        )
    )
    if case.overflow == "repick":
        router.offer_second(SecondExpert(shape, case.layout, spec.placement))
    return router


def topk_options(case: Case) -> dict[str, dict]:
    """The keys of `topk`, `node_limited` and `moge`, by their names."""
    rules = case.rules
    shared = {
        "score_function": rules.score_function,
        "normalise_weights": rules.normalise_weights,
        "weight_scale": rules.weight_scale,
        "sequence_loss_weight": rules.sequence_loss,
        "z_loss_weight": rules.z_loss,
    }
    return {
        "topk": shared,
        "node_limited": {**shared, "max_nodes": rules.max_nodes},
        "moge": {**shared, "device_groups": rules.device_groups},
    }


def load_parameters(case: Case, layer: MoEFeedForward) -> None:
    given, held = parameters_of(case), list(layer.experts.local_experts)
    layer.experts.w_in.set_data(Tensor(given.w1[held]))
    layer.experts.b_in.set_data(Tensor(given.b1[held][:, None]))
    layer.experts.w_out.set_data(Tensor(given.w2[held]))
    layer.experts.b_out.set_data(Tensor(given.b2[held][:, None]))
    if case.spec.learns_gate:
        layer.routing.router.gate.weight.set_data(Tensor(given.gate))
    if given.shared is not None:
        whole = as_one_network(given.shared)
        for parameter in layer.shared_experts.trainable_params():
            parameter.set_data(Tensor(whole[".".join(parameter.name.split(".")[-2:])]))
    if given.partners is not None:
        layer.routing.router.partners.set_data(Tensor(given.partners.astype(np.float32)))
    if given.value_mean is not None:
        layer.routing.router.centre.value_mean.set_data(Tensor(given.value_mean.reshape(case.groups, -1)))
