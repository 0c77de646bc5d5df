"""What a configuration should be told before it trains: where locality cannot pay."""

from typing import Dict, List

from locmoe_ops.dispatch.registry import dispatcher_spec
from locmoe_ops.router_registry import router_spec
from locmoe_ops.topology import ExpertPlacement, local_experts_table
from pangu_sigma.config.derived import experts_per_group
from pangu_sigma.model.sparse import SparseContext, experts_by_node


def groups_without_local_experts(context: SparseContext) -> Dict[int, List[int]]:
    """For each node of the layout that has any: the expert groups its tokens use of which it holds no expert."""
    moe, layout = context.config.moe, context.layout
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.placement)
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
        router_spec(moe.router.type).localises
        or moe.router.local_term.kind != "none"
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
        "nodes specialise: moe.placement=node_grouped with data.placement=domain_by_node. Else moe.router.type=hash "
        "is the faster choice.",
    ]
