"""Declaration of the top-k router with a limit on the nodes that a token goes to (DeepSeek-V3, arXiv 2412.19437)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Optional

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSizes, RouterSpec
from locmoe_ops.routers.specs.topk import TopKOptions, check_weights, cost, count_owners
from locmoe_ops.topology import ExpertPlacement, Topology, nodes_of_experts


@dataclass(frozen=True)
class NodeLimitedOptions(TopKOptions):
    max_nodes: int = key(4, "most nodes that hold a token's experts (DeepSeek-V3: 4 for 8 experts)", minimum=1)
    node_groups: Optional[int] = key(
        None,
        "equal parts of neighbouring experts that count as nodes (DeepSeek-V3: 8); null: the nodes of the layout that "
        "hold experts of the token's group",
        minimum=1,
    )


def check_placement(
    options: NodeLimitedOptions, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement
) -> None:
    """Raises InputError where `max_nodes` nodes hold fewer experts of a group than a token needs."""
    node_blocks(options, sizes, layout, placement)


def pin(
    options: NodeLimitedOptions, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement
) -> NodeLimitedOptions:
    """See `RouterSpec.pin`."""
    return replace(options, node_groups=node_blocks(options, sizes, layout, placement))


def node_blocks(options: NodeLimitedOptions, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement) -> int:
    """The number of nodes that a group's experts lie on, in equal blocks of neighbours. Raises InputError where there
    are no such blocks, or too few experts in `max_nodes` of them.

    Args:
        options: of the router. sizes: of the model. layout, placement: who holds which expert.
    """
    blocks = count_owners("node_limited", "node_groups", options.node_groups, nodes_of_experts(layout, placement))
    within = min(options.max_nodes, blocks) * (sizes.per_group // blocks)
    if within < sizes.top_k:
        raise InputError(
            f"moe.router.node_limited.max_nodes is {options.max_nodes}, and so many nodes hold {within} experts of a "
            f"group, fewer than moe.router.top_k ({sizes.top_k}); expected more nodes, or a smaller top_k"
        )
    return blocks


ROUTER = RouterSpec(
    NodeLimitedOptions,
    selection_biases=("locality_bias", "balance_rate"),
    gate_weights=True,
    check=partial(check_weights, "node_limited"),
    check_placement=check_placement,
    pin=pin,
    cost=cost,
)
