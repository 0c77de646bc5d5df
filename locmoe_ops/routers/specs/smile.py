"""Declaration of SMILE's two-level router (He et al., arXiv 2212.05191)."""

from dataclasses import dataclass

from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterCost, RouterSizes, RouterSpec, check_stretches, check_together
from locmoe_ops.topology import ExpertPlacement, Topology


@dataclass(frozen=True)
class SmileOptions:
    num_nodes: int = key(
        1,
        "nodes that the first of the two routers chooses among: the experts of a group fall into so many equal "
        "stretches of neighbours, each of which lies on one node",
        minimum=1,
    )
    node_loss_weight: float = key(
        0.005, "alpha, weight of the load-balancing loss over nodes (the value is assumed)", minimum=0.0
    )
    expert_loss_weight: float = key(
        0.005,
        "beta, weight of the load-balancing loss over the experts inside a node (the value is assumed)",
        minimum=0.0,
    )


def check(options: SmileOptions, sizes: RouterSizes) -> None:
    """The experts of a group fall into equal stretches, and a token finds all of its own in one of them."""
    least = sizes.top_k, f"since a token finds its {sizes.top_k} experts (moe.router.top_k) on one node"
    check_stretches("smile.num_nodes", options.num_nodes, sizes, least)


def check_placement(options: SmileOptions, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement) -> None:
    """Each stretch lies on one node."""
    check_together("smile.num_nodes", options.num_nodes, "node", layout, placement)


def cost(options: SmileOptions, sizes: RouterSizes) -> RouterCost:
    """A row of weights for each node and each expert inside one, of every group, and a loss over the tokens asked
    for.
    """
    rows = sizes.num_groups * (options.num_nodes + sizes.per_group // options.num_nodes)
    return RouterCost({"gate.weight": (rows, sizes.hidden_size)}, rows * sizes.hidden_size, "asked")


ROUTER = RouterSpec(
    SmileOptions,
    selection_rule="picks a node first, and experts on it",
    second_experts=True,
    check=check,
    check_placement=check_placement,
    cost=cost,
)
