"""Declaration of the top-k router of today (DeepSeek-V3, arXiv 2412.19437, and what follows it)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Optional

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import SELECTION_BIASES, RouterCost, RouterSizes, RouterSpec, dense_gate_cost
from locmoe_ops.topology import count_blocks

SCORE_FUNCTIONS = ("softmax", "sigmoid", "sqrt_softplus")


@dataclass(frozen=True)
class TopKOptions:
    score_function: str = key(
        "softmax",
        "scores of a token's experts, from the gate's values: softmax over its group; sigmoid of each (DeepSeek-V3); "
        "sqrt_softplus, the root of log(1 + exp(value)) of each (DeepSeek-V4)",
        choices=SCORE_FUNCTIONS,
    )
    normalise_weights: bool = key(
        False, "divide a token's weights by their sum over its chosen experts (needs moe.router.top_k above 1)"
    )
    weight_scale: float = key(1.0, "factor on the weights, after that (DeepSeek-V3: 2.5)", above=0.0)
    aux_loss_weight: float = key(
        0.01, "weight of the load-balancing loss over the tokens of moe.router.statistics; 0: none", minimum=0.0
    )
    sequence_loss_weight: float = key(
        0.0, "weight of the same loss within each sequence (DeepSeek-V3: 0.0001); 0: none", minimum=0.0
    )
    z_loss_weight: float = key(
        0.0, "weight of the mean of logsumexp(values)^2 (ST-MoE, arXiv 2202.08906: 0.001); 0: none", minimum=0.0
    )


def check_weights(name: str, options: TopKOptions, sizes: RouterSizes) -> None:
    """Raises InputError where a key of the weights would have no effect, or leave the gate without a gradient.

    Args:
        name: of the router. options: its keys. sizes: of the model.
    """
    if options.normalise_weights and sizes.top_k == 1:
        raise InputError(
            f"moe.router.{name}.normalise_weights is true with moe.router.top_k 1, where every weight would be 1 and "
            "no gradient would reach the gate through it; expected false, or moe.router.top_k above 1"
        )
    if options.weight_scale != 1.0 and not sizes.scale_by_gate:
        raise InputError(
            f"moe.router.{name}.weight_scale is {options.weight_scale} with moe.scale_by_gate false, where outputs are "
            "not scaled by weights; expected 1.0"
        )


def count_owners(name: str, key_name: str, given: Optional[int], owners: np.ndarray) -> int:
    """The number of equal parts, of neighbouring experts, that a group's experts fall into.

    Args:
        name: of the router. key_name: of its key that may give the number. given: what it says; None: by `owners`.
        owners: <int>[G, n], the node or device that holds each expert.

    Raises:
        InputError: the number does not divide n, or owners do not hold equal parts.
    """
    per_group = owners.shape[1]
    if given is None:
        try:
            return count_blocks(owners)
        except InputError as error:
            raise InputError(f"moe.router.type {name}: {error}; or moe.router.{name}.{key_name}") from error
    if per_group % given:
        raise InputError(
            f"moe.router.{name}.{key_name} ({given}) does not divide the {per_group} experts of a group; expected a "
            "divisor"
        )
    return given


def cost(options: TopKOptions, sizes: RouterSizes) -> RouterCost:
    """A dense gate's; statistics and sums of losses only where a loss has a weight."""
    return replace(
        dense_gate_cost(options, sizes),
        statistics="asked" if options.aux_loss_weight > 0.0 else "none",
        sums_losses=options.sequence_loss_weight > 0.0 or options.z_loss_weight > 0.0,
    )


ROUTER = RouterSpec(
    TopKOptions, selection_biases=SELECTION_BIASES, gate_weights=True, check=partial(check_weights, "topk"), cost=cost
)
