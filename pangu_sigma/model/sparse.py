"""Builds the sparse feed-forward layer that a configuration asks for, out of the parts of `locmoe_ops`."""

from dataclasses import dataclass
from typing import List, Optional, Set, Tuple

import numpy as np

from mindspore import nn

from locmoe_ops.capacity import capacity_by_factor
from locmoe_ops.collectives import Collectives
from locmoe_ops.dispatch import (
    Dispatcher,
    EnterWithShares,
    FlatDispatcher,
    HierarchicalDispatcher,
    LeaveWithShares,
    RaggedDispatcher,
)
from locmoe_ops.experts import ExpertBank
from locmoe_ops.moe import MoEFeedForward
from locmoe_ops.routing_cell import MultiLevelRouting
from locmoe_ops.topology import ExpertPlacement, Topology, local_experts_table
from pangu_sigma.config.schema import Config
from pangu_sigma.data.domains import domains_of_node, resolve_domain_groups
from pangu_sigma.model.router import build_router
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
    """`moe.layout` where given, else the topology of the job, in which a tensor-parallel group is one place: its ranks hold the
    same rows.
    """
    given = config.moe.layout
    if given is not None:
        return Topology(given.world_size, given.ranks_per_node, given.expert)
    tensor = topology.tensor
    return topology if tensor == 1 else Topology(topology.data, topology.ranks_per_node // tensor, topology.expert)


def experts_in_play(context: SparseContext) -> int:
    """Experts that share a rank's tokens: all of them, or those of the fewest groups that a node's domains use."""
    return min(len(experts) for experts in experts_by_node(context))


def experts_by_node(context: SparseContext) -> List[Set[int]]:
    """For each node of the layout, the experts that tokens of its ranks may go to."""
    moe, layout, groups = context.config.moe, context.layout, context.domain_groups
    per_group = moe.num_experts // moe.num_groups
    if context.config.data.placement == "shuffled":
        used = [set(groups)] * layout.nodes
    else:
        used = [{groups[d] for d in domains_of_node(node, layout.nodes, groups, moe.num_groups)} for node in range(layout.nodes)]
    return [{group * per_group + j for group in groups_of_node for j in range(per_group)} for groups_of_node in used]


def tier_capacities(context: SparseContext, placement: ExpertPlacement, factor: float) -> Tuple[int, int]:
    """Slots per expert of the own node, and of other nodes, for capacity factor `factor` (see `HierarchicalDispatcher`).

    `moe.capacity.local_share` of a rank's assignments spread over the experts of its node that they may go to, the rest over
    those of other nodes: the rule of capacity factors, tier by tier. All ranks get the same, that of the fewest experts.
    """
    moe, tokens, topology = context.config.moe, context.shape.tokens, context.collectives.topology
    top_k = moe.router.top_k
    near, far = _tier_experts(context, placement)
    share = near / (near + far) if moe.capacity.local_share is None else moe.capacity.local_share
    near_slots = capacity_by_factor(tokens, top_k, near, factor * share) if near and share > 0.0 else 1
    if topology.nodes == 1:
        return near_slots, near_slots  # one tier
    return near_slots, capacity_by_factor(tokens, top_k, far, factor * (1.0 - share)) if far and share < 1.0 else 1


def _tier_experts(context: SparseContext, placement: ExpertPlacement) -> Tuple[int, int]:
    """Experts in play on a token's own node, and on others: the fewest that a rank of any node has."""
    topology = context.collectives.topology
    local = local_experts_table(topology, placement)[:: topology.ranks_per_node]  # (nodes, E)
    in_play = experts_by_node(context)
    if len(in_play) != len(local):  # a layout of another number of nodes: any of its experts from any node
        in_play = [set.union(*in_play)] * len(local)
    counts = [(sum(held[e] for e in experts), sum(not held[e] for e in experts)) for held, experts in zip(local, in_play)]
    return min(int(near) for near, _ in counts), min(int(far) for _, far in counts)


def build_dispatcher(context: SparseContext, placement: ExpertPlacement, factor: float, tag: str) -> Dispatcher:
    """The dispatcher that `moe.dispatch.type` names, with slots for capacity factor `factor` if it has any."""
    dispatch, tokens, top_k = context.config.moe.dispatch, context.shape.tokens, context.config.moe.router.top_k
    if dispatch.type == "hierarchical":
        near, far = tier_capacities(context, placement, factor)
        return HierarchicalDispatcher(context.collectives, placement, tokens, top_k, near, far, dispatch.drop_priority, tag,
                                      dispatch.chunks, dispatch.group_wise, dispatch.overflow)
    if dispatch.type == "ragged":
        return RaggedDispatcher(context.collectives, placement, tokens, top_k, dispatch.ragged_limit, tag, "moe.dispatch.ragged_limit")
    capacity = capacity_by_factor(tokens, top_k, experts_in_play(context), factor)
    return FlatDispatcher(context.collectives, placement, tokens, top_k, capacity, dispatch.drop_priority, tag, dispatch.chunks,
                          dispatch.group_wise, dispatch.overflow)


def expert_gateways(context: SparseContext, layer: int) -> Tuple[nn.Cell, nn.Cell]:
    """The ways into and out of the experts, whose inner features a tensor-parallel group shares out (see `ExpertBank`): for whole
    slots, or for shares of them that a group-wise dispatcher brings.
    """
    if context.config.moe.dispatch.group_wise:
        tag = f"all_to_all/layer {layer} group"
        return EnterWithShares(context.collectives, f"{tag}/gather"), LeaveWithShares(context.collectives, f"{tag}/scatter")
    tensor, tag = context.shape.tensor, f"tensor/layer {layer}"
    return tensor.enter(tag), tensor.leave(tag)


def training_dispatcher(context: SparseContext, layer: int, factor: float, variant: str = "") -> Dispatcher:
    """The dispatcher of sparse layer `layer` in training; `variant` tells the tags of several of one layer apart."""
    return build_dispatcher(context, _job_placement(context), factor, f"all_to_all/layer {layer}{variant}")


def _job_placement(context: SparseContext) -> ExpertPlacement:
    """Experts on the ranks that run the job."""
    moe = context.config.moe
    return ExpertPlacement(moe.num_experts, moe.num_groups, context.collectives.topology.expert, moe.placement)


def build_sparse_layer(context: SparseContext, layer: int) -> MoEFeedForward:
    """A sparse layer for this rank; `layer` numbers the sparse layers from 0."""
    moe, shape, topology = context.config.moe, context.shape, context.collectives.topology
    placement = _job_placement(context)
    layout_placement = ExpertPlacement(moe.num_experts, moe.num_groups, context.layout.expert, moe.placement)
    experts = ExpertBank(placement.local_experts(topology.ep_index(context.collectives.rank)), shape.hidden_size,
                         shape.ffn_hidden_size, shape.activation, shape.compute_dtype, shape.tensor, *expert_gateways(context, layer))
    return MoEFeedForward(
        routing=MultiLevelRouting(context.domain_groups, build_router(context, layer, layout_placement)),
        dispatcher=training_dispatcher(context, layer, moe.capacity.factor),
        experts=experts,
        local=local_experts_table(context.layout, layout_placement),
        scale_by_gate=moe.scale_by_gate,
        evaluation_dispatcher=build_dispatcher(context, placement, moe.capacity.evaluation_factor, f"all_to_all/layer {layer} evaluation"))
