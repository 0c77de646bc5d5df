"""Declaration of LocMoE's router (arXiv 2401.13920)."""

from dataclasses import dataclass, replace
from typing import Optional

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import (
    SELECTION_BIASES,
    RouterCost,
    RouterSizes,
    RouterSpec,
    check_blocks,
    dense_gate_cost,
)


@dataclass(frozen=True)
class LocMoEOptions:
    gate: str = key(
        "grap",
        "grouped average pooling (fixed weights, LocMoE Eq. 4) or a learned dense gate",
        choices=("grap", "dense"),
    )
    gate_input: str = key(
        "hidden",
        "hidden: the gate sees the layer's normed input, as in the paper; word: the token's normed word "
        "vector; code: a fixed random code of the token's id; codes lie nearest to experts in "
        "equal shares of their group's text, routes stay, as RRE's do, and the losses have nothing to bend "
        "(both ours)",
        choices=("hidden", "word", "code"),
    )
    blocks: str = key(
        "contiguous",
        "features that a GrAP gate averages: contiguous blocks, as in the paper; by_layer: blocks of a random "
        "order of features, another one in each layer (ours)",
        choices=("contiguous", "by_layer"),
    )
    aux_loss_weight: float = key(0.01, "alpha of L_aux (LocMoE Eq. 5)", minimum=0.0)
    locality_loss_weight: float = key(0.01, "mu of L_loc (LocMoE Eq. 6); the paper does not give a value", minimum=0.0)
    locality_smoothing: float = key(
        0.1,
        "share of the localised distribution D_l spread over all experts, so that KL stays finite",
        above=0.0,
        maximum=1.0,
    )
    divergence_loss_weight: float = key(
        0.0,
        "weight of a loss that drives domains to different experts, over the tokens that moe.router.statistics says "
        "(ours, after arXiv 2603.00054); it is part of loss/aux; for one expert group of several domains; 0: none",
        minimum=0.0,
    )
    ties: str = key(
        "first",
        "what decides tokens whose gate values ReLU makes 0 (docs/routers.md): first: the group's first expert; "
        "unrectified: the values before ReLU (ours); noise: noise on the values before ReLU in training, eps_i of "
        "LocMoE Eq. 2",
        choices=("first", "unrectified", "noise"),
    )
    noise_scale: Optional[float] = key(
        None,
        "eps_i of LocMoE Eq. 2, in training: uniform between minus this and this (our choice, the paper gives "
        "none), whatever `ties` says; null: no noise, but with ties noise the standard deviation of a gate value: "
        "sqrt(n / d) for n experts of a group and hidden size d, of a block's mean of standardised features; 1 with "
        "normalise token",
        above=0.0,
    )
    normalise: str = key(
        "none",
        "what is done to w_i x of a token before noise and ReLU: none, as in the paper; token: its values over the "
        "experts of its group are brought to mean 0 and deviation 1 (ours), so that the largest is above 0",
        choices=("none", "token"),
    )
    centre_rate: float = key(
        0.0,
        "above 0: a running mean over the tokens of a group is subtracted from each expert's w_i x, so that what these "
        "tokens have in common does not decide, and after a step it moves by this share of the way to the step's mean "
        "(ours); 0: as in the paper",
        minimum=0.0,
        maximum=1.0,
    )
    value_scale: float = key(
        1.0, "factor on the values before the softmax; the paper has 1, larger ones make it sharper (ours)", above=0.0
    )
    context_weight: float = key(
        0.0,
        "with gate_input code: weight of the layer's normed input beside the code, whose GrAP values are added to the "
        "code's coordinates, so that tokens of one id can part by their context (ours); 0: routes follow from ids",
        minimum=0.0,
    )
    context_start_step: int = key(0, "last step in which the context has no weight", minimum=0)
    context_warmup_steps: int = key(
        0, "steps in which the context's weight goes linearly from 0 to context_weight; 0: a jump", minimum=0
    )
    rectify: bool = key(True, "the ReLU of LocMoE Eq. 2; false: the softmax takes the values as they are (ours)")


def check(options: LocMoEOptions, sizes: RouterSizes) -> None:
    """Raises InputError where one key has no part in what another one asks for."""
    if options.gate_input == "code" and options.gate == "dense":
        raise InputError(
            "moe.router.locmoe.gate is dense with moe.router.locmoe.gate_input code, whose gate is fixed; expected grap"
        )
    if options.blocks != "contiguous" and (options.gate == "dense" or options.gate_input == "code"):
        without_blocks = "gate dense" if options.gate == "dense" else "gate_input code"
        raise InputError(
            f"moe.router.locmoe.blocks is {options.blocks} with moe.router.locmoe.{without_blocks}, which has no "
            "blocks; expected contiguous"
        )
    if options.noise_scale is not None and options.gate_input == "code":
        raise InputError(
            f"moe.router.locmoe.noise_scale is {options.noise_scale} with moe.router.locmoe.gate_input code, whose "
            "routes are fixed; expected null"
        )
    if options.centre_rate > 0.0 and options.gate_input == "code":
        raise InputError(
            f"moe.router.locmoe.centre_rate is {options.centre_rate} with moe.router.locmoe.gate_input code, whose "
            "experts already have equal shares; expected 0"
        )
    if options.ties == "unrectified" and not options.rectify:
        raise InputError(
            "moe.router.locmoe.ties is unrectified with moe.router.locmoe.rectify false, which leaves no value "
            "rectified; expected first"
        )
    if options.ties != "first" and options.gate_input == "code":
        raise InputError(
            f"moe.router.locmoe.ties is {options.ties} with moe.router.locmoe.gate_input code, whose largest value is "
            "always above 0; expected first"
        )
    _check_context(options)
    if options.divergence_loss_weight > 0.0 and options.gate_input == "code" and options.context_weight == 0.0:
        raise InputError(
            f"moe.router.locmoe.divergence_loss_weight is {options.divergence_loss_weight} with "
            "moe.router.locmoe.gate_input code, whose routes no loss can bend; expected 0"
        )
    if options.divergence_loss_weight > 0.0 and sizes.num_groups > 1:
        raise InputError(
            f"moe.router.locmoe.divergence_loss_weight is {options.divergence_loss_weight} with moe.num_groups "
            f"{sizes.num_groups}, which gives domains different experts beforehand; expected 0, or moe.num_groups 1"
        )
    if options.gate == "grap":
        check_blocks("locmoe.gate grap", sizes)


def _check_context(options: LocMoEOptions) -> None:
    """Raises InputError where keys of a context term have no part."""
    if options.context_weight > 0.0 and options.gate_input != "code":
        raise InputError(
            f"moe.router.locmoe.context_weight is {options.context_weight} with moe.router.locmoe.gate_input "
            f"{options.gate_input}, which has no codes to add a context to; expected 0, or gate_input code"
        )
    for name in ("context_start_step", "context_warmup_steps"):
        if options.context_weight == 0.0 and getattr(options, name):
            raise InputError(
                f"moe.router.locmoe.{name} is {getattr(options, name)} with moe.router.locmoe.context_weight 0, which "
                "leaves no weight to lead there; expected 0"
            )


def map_of_ids(options: LocMoEOptions) -> Optional[str]:
    """See `RouterSpec.map_of_ids`: codes lie nearest to experts by frequency; other gates, and codes with a context,
    see more than ids.
    """
    return "frequency" if options.gate_input == "code" and options.context_weight == 0.0 else None


def cost(options: LocMoEOptions, sizes: RouterSizes) -> RouterCost:
    """A dense gate, a product with fixed weights, or a look-up; the locality loss needs sums by node, a divergence loss
    sums by domain.
    """
    only_ids = options.gate_input == "code" and options.context_weight == 0.0
    products = 0 if only_ids else sizes.per_group * sizes.hidden_size
    gate = dense_gate_cost(options, sizes) if options.gate == "dense" else RouterCost(products=products)
    sums_values, sums_domains = options.centre_rate > 0.0, options.divergence_loss_weight > 0.0
    return replace(gate, statistics="node", sums_values=sums_values, sums_domains=sums_domains)


ROUTER = RouterSpec(
    LocMoEOptions,
    selection_biases=SELECTION_BIASES,
    second_experts=True,
    gate_weights=True,
    counts_undecided=True,
    localises=True,
    map_of_ids=map_of_ids,
    check=check,
    cost=cost,
)
