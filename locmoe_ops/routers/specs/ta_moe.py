"""Declaration of TA-MoE's router (Chen et al., NeurIPS 2022, arXiv 2302.09915)."""

from dataclasses import dataclass, replace

from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterCost, RouterSizes, RouterSpec, dense_gate_cost


@dataclass(frozen=True)
class TAMoEOptions:
    bandwidth_ratio: float = key(
        4.0, "bandwidth of a link inside a node over one between nodes; 1: the loss of switch", above=0.0
    )
    aux_loss_weight: float = key(0.01, "weight of the topology loss", minimum=0.0)


def cost(options: TAMoEOptions, sizes: RouterSizes) -> RouterCost:
    """A dense gate's; targets differ between nodes, so the loss needs sums by node."""
    return replace(dense_gate_cost(options, sizes), statistics="node")


ROUTER = RouterSpec(
    TAMoEOptions,
    selection_biases=("locality_bias",),
    second_experts=True,
    gate_weights=True,
    localises=True,
    cost=cost,
)
