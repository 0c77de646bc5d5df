"""Builds the sparse feed-forward layer that a configuration asks for, out of the parts of `locmoe_ops`."""

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from locmoe_ops.capacity import capacity_by_factor
from locmoe_ops.collectives import Collectives
from locmoe_ops.dispatch import FlatDispatcher
from locmoe_ops.experts import ExpertBank
from locmoe_ops.hash_maps import layer_hash_tables
from locmoe_ops.moe import MoEFeedForward
from locmoe_ops.routers import HashRouter, LocMoERouter, Router, RoutingShape, SwitchRouter
from locmoe_ops.routing_cell import MultiLevelRouting
from locmoe_ops.topology import ExpertPlacement, Topology, local_experts_table
from pangu_sigma.config.schema import Config
from pangu_sigma.data.domains import domains_of_node, resolve_domain_groups
from pangu_sigma.model.shape import ModelShape


@dataclass(frozen=True)
class SparseContext:
    """What the sparse layers of a model share beyond its shape."""

    config: Config
    shape: ModelShape
    collectives: Collectives
    token_counts: Optional[np.ndarray] = None  # <int64>[V], for the frequency-balanced hash map

    @property
    def layout(self) -> Topology:
        """The cluster that homes, locality and per-node statistics refer to."""
        return resolve_layout(self.config, self.collectives.topology)

    @property
    def domain_groups(self) -> Tuple[int, ...]:
        return resolve_domain_groups(self.config.moe.domain_groups, self.shape.domains, self.config.moe.num_groups)


def resolve_layout(config: Config, topology: Topology) -> Topology:
    """`moe.layout` where given, else the topology of the job."""
    given = config.moe.layout
    return topology if given is None else Topology(given.world_size, given.ranks_per_node, given.expert)


def experts_in_play(context: SparseContext) -> int:
    """Experts that share a rank's tokens: all of them, or those of the fewest groups that a node's domains use."""
    moe, layout = context.config.moe, context.layout
    per_group = moe.num_experts // moe.num_groups
    if context.config.data.placement == "shuffled":
        return per_group * len(set(context.domain_groups))
    groups = context.domain_groups
    used = [{groups[d] for d in domains_of_node(node, layout.nodes, groups, moe.num_groups)} for node in range(layout.nodes)]
    return per_group * min(len(groups_of_node) for groups_of_node in used)


def build_router(context: SparseContext, layer: int, layout_placement: ExpertPlacement) -> Router:
    """The level-2 router that `moe.router.type` names."""
    moe, seed = context.config.moe, context.config.train.seed
    options, tag = moe.router, f"layer {layer}"
    shape = RoutingShape(context.shape.hidden_size, moe.num_experts, moe.num_groups, options.top_k)
    if options.type == "hash":
        return HashRouter(shape, layer_hash_tables(options.hash.balance, moe.num_groups, shape.per_group,
                                                   context.shape.vocab_size, layer, seed, context.token_counts))
    if options.type == "switch":
        return SwitchRouter(shape, context.layout, context.collectives, tag, options.statistics,
                            options.switch.aux_loss_weight, options.switch.jitter, salt=4 * layer + 5)
    own = options.locmoe
    return LocMoERouter(shape, context.layout, layout_placement, context.collectives, tag, own.gate, options.statistics,
                        own.aux_loss_weight, own.locality_loss_weight, own.locality_smoothing)


def build_dispatcher(context: SparseContext, placement: ExpertPlacement, factor: float, tag: str) -> FlatDispatcher:
    """The dispatcher that `moe.dispatch.type` names, with slots for capacity factor `factor`."""
    moe, tokens, top_k = context.config.moe, context.shape.tokens, context.config.moe.router.top_k
    capacity = capacity_by_factor(tokens, top_k, experts_in_play(context), factor)
    return FlatDispatcher(context.collectives, placement, tokens, top_k, capacity, moe.dispatch.drop_priority, tag)


def build_sparse_layer(context: SparseContext, layer: int) -> MoEFeedForward:
    """A sparse layer for this rank; `layer` numbers the sparse layers from 0."""
    moe, shape, topology = context.config.moe, context.shape, context.collectives.topology
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, topology.expert, moe.placement)
    layout_placement = ExpertPlacement(moe.num_experts, moe.num_groups, context.layout.expert, moe.placement)
    experts = ExpertBank(placement.local_experts(topology.ep_index(context.collectives.rank)), shape.hidden_size,
                         shape.ffn_hidden_size, shape.activation, shape.compute_dtype)
    return MoEFeedForward(
        routing=MultiLevelRouting(context.domain_groups, build_router(context, layer, layout_placement)),
        dispatcher=build_dispatcher(context, placement, moe.capacity.factor, f"layer {layer}"),
        experts=experts,
        local=local_experts_table(context.layout, layout_placement),
        scale_by_gate=moe.scale_by_gate,
        evaluation_dispatcher=build_dispatcher(context, placement, moe.capacity.evaluation_factor, f"layer {layer} evaluation"))
