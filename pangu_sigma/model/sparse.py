"""Builds the sparse feed-forward layer that a configuration asks for, out of the parts of `locmoe_ops`, and says where
locality cannot pay in it.
"""

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.group_wise import AllGatherSlots, ReduceScatterSlots
from locmoe_ops.dispatch.registry import dispatcher_spec, load_dispatcher
from locmoe_ops.errors import InputError
from locmoe_ops.experts import ExpertBank, ExpertKernels
from locmoe_ops.moe import MoEFeedForward, MultiLevelRouting
from locmoe_ops.router_registry import RouterSizes, router_spec
from locmoe_ops.routers.balance import make_balance_bias
from locmoe_ops.routers.base import Router, RouterContext, RoutingShape, make_router
from locmoe_ops.routers.second import SecondExpert
from locmoe_ops.routers.selection_bias import BalanceBias, LocalityBias, SelectionBias, Sum
from locmoe_ops.tensor_parallel import SplitRegion
from locmoe_ops.topology import ExpertPlacement, Placement, Topology, local_experts_table
from pangu_sigma.config.derived import (
    experts_per_group,
    layer_router,
    layer_routers,
    router_sizes,
    shared_ffn_hidden_size,
)
from pangu_sigma.config.schema import Config, RouterConfig
from pangu_sigma.data.map_file import MapSizes, read_map
from pangu_sigma.model.block import SharedExperts
from pangu_sigma.model.capacity_rules import SlotRules
from pangu_sigma.model.dims import ModelDims


@dataclass(frozen=True)
class SparseContext:
    """What the sparse layers of a model share.

    Attributes:
        config: the job's. shape: sizes of the model. collectives: of this rank.
        token_counts: <int64>[G, V], of each group's training text, for maps that balance by it.
        id_nodes: <int>[G, V], nodes of ids, for maps by cooccurrence.
        reads_files: whether maps and tables that the configuration names files of are read; False: a checkpoint brings
            them, or they do not matter.
    """

    config: Config
    shape: ModelDims
    collectives: Collectives
    token_counts: Optional[np.ndarray] = None
    id_nodes: Optional[np.ndarray] = None
    reads_files: bool = True

    @property
    def slot_rules(self) -> SlotRules:
        return SlotRules(self.config, self.collectives.topology, self.shape.domains, self.shape.tokens)

    @property
    def layout(self) -> Topology:
        """The cluster that homes, locality and per-node statistics refer to."""
        return self.slot_rules.layout

    @property
    def domain_groups(self) -> Tuple[int, ...]:
        return self.slot_rules.domain_groups


def experts_in_play(context: SparseContext) -> int:
    """See `SlotRules.experts_in_play`."""
    return context.slot_rules.experts_in_play()


def experts_by_node(context: SparseContext) -> List[Set[int]]:
    """See `SlotRules.experts_by_node`."""
    return context.slot_rules.experts_by_node()


def build_dispatcher(
    context: SparseContext, placement: Placement, factor: float, tag: str, evaluation: bool = False, bucket: int = 0
) -> Dispatcher:
    """The dispatcher that `moe.dispatch.type` names.

    Args:
        context: configuration, sizes and collectives. placement: the ranks that exchange tokens, and their experts.
        factor: capacity factor, if it has slots. tag: names its collectives.
        evaluation, bucket: see `SlotRules.tier_capacities`.
    """
    setup = context.slot_rules.dispatch_setup(placement, factor, evaluation, bucket)
    dispatcher: Dispatcher = load_dispatcher(context.config.moe.dispatch.type).build(context.collectives, setup, tag)
    return dispatcher


def expert_region(context: SparseContext, layer: int) -> SplitRegion:
    """The experts' split region, whose inner features a tensor-parallel group shares out: its ways in and out are for
    whole slots, or for shares of them that a group-wise dispatcher brings.
    """
    tensor, collectives = context.shape.tensor, context.collectives
    if context.config.moe.dispatch.group_wise:
        tag = f"all_to_all/layer {layer} group"
        gather, scatter = (
            AllGatherSlots(collectives, f"{tag}/gather"),
            ReduceScatterSlots(collectives, f"{tag}/scatter"),
        )
        return SplitRegion(tensor, gather, scatter)
    tag = f"tensor/layer {layer}"
    return SplitRegion(tensor, tensor.copy_in(tag), tensor.reduce_out(tag))


def training_dispatcher(
    context: SparseContext, layer: int, factor: float, variant: str = "", bucket: int = 0
) -> Dispatcher:
    """The dispatcher of a sparse layer in training.

    Args:
        context: as in `build_dispatcher`. layer: number of the sparse layer, from 0. factor: capacity factor.
        variant: distinguishes the tags of several dispatchers of one layer. bucket: see `SlotRules.tier_capacities`.
    """
    placement = context.slot_rules.exchange_of(context.collectives.rank)
    return build_dispatcher(context, placement, factor, f"all_to_all/layer {layer}{variant}", bucket=bucket)


def build_sparse_layer(context: SparseContext, layer: int) -> MoEFeedForward:
    """A sparse layer for this rank; `layer` numbers the sparse layers from 0."""
    moe, shape, topology = context.config.moe, context.shape, context.collectives.topology
    placement, tag = context.slot_rules.placement, f"all_to_all/layer {layer} evaluation"
    layout_placement = ExpertPlacement(moe.num_experts, moe.num_groups, context.layout.expert, moe.expert_placement)
    experts = ExpertBank(
        placement.local_experts(topology.ep_index(context.collectives.rank)),
        shape.hidden_size,
        shape.ffn_hidden_size,
        shape.activation,
        ExpertKernels(shape.compute_dtype, context.config.runtime.fused.experts, shape.kernels),
        expert_region(context, layer),
    )
    built = MoEFeedForward(
        routing=MultiLevelRouting(context.domain_groups, build_router(context, layer, layout_placement)),
        dispatcher=training_dispatcher(context, layer, moe.capacity.factor),
        experts=experts,
        local=local_experts_table(context.layout, layout_placement),
        scale_by_gate=moe.scale_by_gate,
        evaluation_dispatcher=build_dispatcher(
            context, placement, moe.capacity.evaluation_factor, tag, evaluation=True
        ),
    )
    if moe.shared_experts:
        of_all = replace(shape, ffn_hidden_size=shared_ffn_hidden_size(context.config))
        built.add_shared_experts(SharedExperts(of_all, context.config.model.dense_layers + layer))
    return built


def build_router(context: SparseContext, layer: int, layout_placement: ExpertPlacement) -> Router:
    """The level-2 router of a layer, as `moe.router` or an entry of `moe.routers` names it.

    A locality bias has its final strength until a schedule sets another.

    Args:
        context: of the sparse layers. layer: number of the sparse layer, from 0.
        layout_placement: experts on the cluster that locality refers to.
    """
    moe, options, layout = context.config.moe, layer_router(context.config, layer), context.layout
    shape = RoutingShape(context.shape.hidden_size, moe.num_experts, moe.num_groups, options.top_k)
    biases: List[SelectionBias] = []
    if options.locality_bias.kind != "none":
        local_term = options.locality_bias
        biases.append(LocalityBias(local_term.kind, shape, layout, layout_placement, local_term.strength))
    if options.balance_rate > 0.0:
        biases.append(BalanceBias(shape))
    elif options.balance.kind != "none":
        biases.append(make_balance_bias(options.balance.kind, shape, options.balance.bins))
    router = make_router(
        RouterContext(
            options.type,
            options.own,
            shape,
            layout,
            layout_placement,
            context.collectives,
            tag=f"layer {layer}",
            statistics=options.statistics,
            layer=layer,
            seed=context.config.train.seed,
            selection_bias=Sum(biases) if len(biases) > 1 else biases[0] if biases else None,
            vocab_size=context.shape.vocab_size,
            sequence_length=context.shape.sequence_length,
            token_counts=context.token_counts,
            rules_change=moe.evaluation_rules == "none",
            locality_loss_changes=options.locality_loss.initial_weight is not None,
            domains=context.shape.domains,
            id_nodes=context.id_nodes,
            id_map=_map_of_file(context, layer, options, shape),
            reads_files=context.reads_files,
            kernels=context.shape.kernels,
        )
    )
    _check_cost(options, router_sizes(context.config), router)
    if moe.dispatch.overflow == "repick":
        router.offer_second(SecondExpert(shape, layout, layout_placement))
    return router


def _check_cost(options: RouterConfig, sizes: RouterSizes, router: Router) -> None:
    """Raises InputError: the weights that the router's `cost` declares, by which plans are made, are not its own."""
    declared = router_spec(options.type).cost(options.own, sizes).weights
    planned = {name: tuple(shape) for name, shape in declared.items()}
    built = {weight.name: tuple(weight.shape) for weight in router.trainable_params()}
    if planned != built:
        raise InputError(
            f"moe.router.type {options.type}: its cost declares the weights {planned}, and it has {built}; expected "
            "the same names and shapes"
        )


def _map_of_file(context: SparseContext, layer: int, router: RouterConfig, shape: RoutingShape) -> Optional[np.ndarray]:
    """The map of a layer whose `router` names a file of maps; None: it names none, or it is not to be read."""
    path = getattr(router.own, "map", None)
    if path is None or not context.reads_files:
        return None
    return read_map(path, layer, MapSizes(shape.num_experts, shape.num_groups, shape.top_k, context.shape.vocab_size))


def homes_of_ids(config: Config, layout: Topology, layers: Sequence[MoEFeedForward]) -> np.ndarray:
    """<int64>[nodes, G, V]: how many of an id's experts of a group are on a node of the layout, summed over those of
    `layers` whose routes follow from token ids.

    Args:
        config: what the layers were built from. layout: the cluster that homes refer to.
        layers: all sparse ones.
    """
    moe = config.moe
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)
    local = local_experts_table(layout, placement)[:: layout.ranks_per_node]  # (nodes, E)
    first = np.arange(moe.num_groups)[:, None, None] * placement.experts_per_group
    found: List[np.ndarray] = []
    for number, layer in enumerate(layers):
        router = layer_router(config, number)
        if router_spec(router.type).map_of_ids(router.own) is not None:
            experts = layer.routing.router.expert_by_id()
            experts = first + experts.reshape(*experts.shape[:2], -1)  # (G, V, k) <- (G, V) or (G, V, k)
            found.append(local[:, experts].sum(-1))  # (nodes, G, V) <- (nodes, G, V, k)
    return np.sum(found, axis=0, dtype=np.int64)


def groups_without_local_experts(context: SparseContext) -> Dict[int, List[int]]:
    """For each node of the layout that has any: the expert groups its tokens use of which it holds no expert."""
    moe, layout = context.config.moe, context.layout
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)
    local = local_experts_table(layout, placement)[:: layout.ranks_per_node]  # (nodes, E)
    found: Dict[int, List[int]] = {}
    for node, experts in enumerate(experts_by_node(context)):
        used = {expert // placement.experts_per_group for expert in experts}
        held = {expert // placement.experts_per_group for expert in experts if local[node, expert]}
        if used - held:
            found[node] = sorted(used - held)
    return found


def locality_advice(context: SparseContext) -> List[str]:
    """Lines for the user, none where every node can keep its tokens or nothing in the configuration is about locality.

    LocMoE's own losing case (arXiv 2401.13920, 256 devices): where nodes outnumber the experts of a group, a node
    without one gains nothing, and the hash router is faster.
    """
    moe, nodes = context.config.moe, context.layout.nodes
    wants_locality = (
        any(router_spec(router.type).localises for router in layer_routers(context.config))
        or moe.router.locality_bias.kind != "none"
        or dispatcher_spec(moe.dispatch.type).localises
    )
    without = groups_without_local_experts(context)
    if nodes == 1 or not wants_locality or not without:
        return []
    node, groups = next(iter(without.items()))
    per_group = experts_per_group(context.config)
    return [
        f"warning: {len(without)} of {nodes} nodes hold no expert for some of their tokens (node {node}: group "
        f"{groups[0]}): these always leave their node, and locality gains nothing there.",
        f"  moe.num_experts / moe.num_groups is {per_group}; with {nodes} or more every node can hold one. Or let "
        "nodes specialise: moe.expert_placement=node_grouped with data.placement=domain_by_node. Else "
        "moe.router.type=hash is the faster choice.",
    ]
