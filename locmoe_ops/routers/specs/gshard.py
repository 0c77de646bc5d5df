"""Declaration of GShard's top-2 router (Lepikhin et al., arXiv 2006.16668)."""

from dataclasses import dataclass

from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSpec, dense_gate_cost


@dataclass(frozen=True)
class GShardOptions:
    aux_loss_weight: float = key(0.01, "weight of the load-balancing loss of first choices", minimum=0.0)


ROUTER = RouterSpec(
    GShardOptions, top_k=2, selection_biases=("locality_bias",), gate_weights=True, cost=dense_gate_cost
)
