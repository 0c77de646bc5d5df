"""Declaration of expert-token resonance, the router of LocMoE+ (Li et al., arXiv 2406.00023)."""

from dataclasses import dataclass
from typing import Optional

from locmoe_ops.keys import key
from locmoe_ops.router_registry import SELECTION_BIASES, RouterCost, RouterSizes, RouterSpec, check_blocks


@dataclass(frozen=True)
class ETROptions:
    temperature: float = key(
        0.1, "divides cosine affinities before the softmax; the paper does not give a value", above=0.0
    )
    aux_loss_weight: float = key(0.01, "weight of the load-balancing loss", minimum=0.0)
    locality_loss_weight: float = key(0.01, "weight of the locality loss, as of locmoe", minimum=0.0)
    locality_smoothing: float = key(0.1, "as of locmoe", above=0.0, maximum=1.0)
    expert_choice_start_step: Optional[int] = key(
        None,
        "last step in which tokens choose their experts; afterwards, in training, experts choose their tokens, as the "
        "paper's fourth version has it (the step is ours, the paper gives none); null: tokens choose in every step",
        minimum=0,
    )


def check(options: ETROptions, sizes: RouterSizes) -> None:
    """GrAP weights average equal blocks of features."""
    check_blocks("type etr", sizes)


def cost(options: ETROptions, sizes: RouterSizes) -> RouterCost:
    """One product with fixed weights; the locality loss needs sums by node."""
    return RouterCost(products=sizes.per_group * sizes.hidden_size, statistics="node")


ROUTER = RouterSpec(
    ETROptions,
    selection_biases=SELECTION_BIASES,
    second_experts=True,
    gate_weights=True,
    expert_choice=True,
    localises=True,
    check=check,
    cost=cost,
)
