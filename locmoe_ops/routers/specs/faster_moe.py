"""Declaration of the router with a cap on tokens that leave their node, after FasterMoE (He et al., PPoPP 2022)."""

from dataclasses import dataclass

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSizes, RouterSpec, dense_gate_cost


@dataclass(frozen=True)
class FasterMoEOptions:
    rule: str = key(
        "ours",
        "ours: those leave their node that would lose most probability at home; fastmoe: the rule of the fastmoe "
        "library's gate, with its weights and its loss (docs/routers.md); it sends every token to two experts",
        choices=("ours", "fastmoe"),
    )
    max_remote_fraction: float = key(
        0.14,
        "at most this share of a home rank's tokens leaves its node (0.14 is the fastmoe library's "
        "default; rule says which tokens); 1: no cap",
        minimum=0.0,
        maximum=1.0,
    )
    aux_loss_weight: float = key(
        0.01,
        "weight of the load-balancing loss: of what is chosen under the cap, or with rule fastmoe of first choices "
        "before it; 0: none",
        minimum=0.0,
    )


def check(options: FasterMoEOptions, sizes: RouterSizes) -> None:
    """Raises InputError where the library's rule is asked for with another number of experts a token than its two."""
    if options.rule == "fastmoe" and sizes.top_k != 2:
        raise InputError(
            f"moe.router.top_k is {sizes.top_k} with moe.router.faster_moe.rule fastmoe, which sends every token to "
            "two experts; expected 2, or rule ours"
        )


ROUTER = RouterSpec(
    FasterMoEOptions,
    selection_rule="limits remote choices by its own cap",
    second_experts=True,
    gate_weights=True,
    localises=True,
    check=check,
    cost=dense_gate_cost,
)
