"""Declaration of Switch Transformers' router (arXiv 2101.03961)."""

from dataclasses import dataclass

from locmoe_ops.keys import key
from locmoe_ops.router_registry import SELECTION_BIASES, RouterSpec, dense_gate_cost


@dataclass(frozen=True)
class SwitchOptions:
    aux_loss_weight: float = key(0.01, "alpha of the load-balancing loss", minimum=0.0)
    jitter: float = key(
        0.0, "inputs of the gate are multiplied by uniform(1-jitter, 1+jitter) in training", minimum=0.0, maximum=0.5
    )


ROUTER = RouterSpec(
    SwitchOptions, selection_biases=SELECTION_BIASES, second_experts=True, gate_weights=True, cost=dense_gate_cost
)
