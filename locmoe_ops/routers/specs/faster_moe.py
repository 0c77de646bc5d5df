"""Declaration of the router with a cap on tokens that leave their node, after FasterMoE (He et al., PPoPP 2022)."""

from dataclasses import dataclass

from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSpec, dense_gate_cost


@dataclass(frozen=True)
class FasterMoEOptions:
    max_remote_fraction: float = key(
        0.14,
        "at most this share of a home rank's tokens leaves its node (0.14 is the fastmoe library's "
        "default; who leaves is our rule: those that would lose most probability at home)",
        minimum=0.0,
        maximum=1.0,
    )
    aux_loss_weight: float = key(
        0.01,
        "weight of the load-balancing loss of what is chosen under the cap (ours; the fastmoe library's is "
        "of first choices before the cap); 0: none",
        minimum=0.0,
    )


ROUTER = RouterSpec(
    FasterMoEOptions,
    selection_rule="limits remote choices by its own cap",
    second_experts=True,
    gate_weights=True,
    localises=True,
    cost=dense_gate_cost,
)
