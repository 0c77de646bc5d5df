"""Declaration of routing by token id: random routed experts (RRE) of PanGu-Sigma (arXiv 2303.10845), Hash Layers, and
the first layers of DeepSeek-V4.
"""

from dataclasses import dataclass, fields, replace
from typing import Optional

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterCost, RouterSizes, RouterSpec, dense_gate_cost
from locmoe_ops.routers.specs.topk import SCORE_FUNCTIONS

FROM_FILE = "file"  # what `map_of_ids` says of maps that a file brings


@dataclass(frozen=True)
class HashOptions:
    balance: str = key(
        "uniform",
        "deal the vocabulary out evenly by count of ids, or by their frequency in the group's training text; "
        "cooccurrence: the same, but ids that occur in the same rows share a node's experts, so that a row leans to a "
        "node, for data.placement known_routes (ours)",
        choices=("uniform", "frequency", "cooccurrence"),
    )
    map: Optional[str] = key(
        None,
        "file of maps that `pangu-sigma ckpt export-map SOURCE TARGET` writes, or anyone (docs/hash_maps.md); each "
        "layer takes its own. A checkpoint brings its maps along and no longer needs the file; null: maps are drawn as "
        "`balance` says",
    )
    weights: str = key(
        "equal",
        "of a token's experts: equal, 1 / top_k each (RRE); gate: by a learned gate's scores of them, as DeepSeek-V4 "
        "has it: the map still says which",
        choices=("equal", "gate"),
    )
    score: str = key(
        "sqrt_softplus",
        "with weights gate: what makes scores of the gate's values; softmax: over the experts of the group",
        choices=SCORE_FUNCTIONS,
    )
    renormalise: bool = key(True, "with weights gate: a token's scores are divided by their sum over its experts")
    scale: float = key(1.0, "with weights gate: factor on the weights", above=0.0)


def check(options: HashOptions, sizes: RouterSizes) -> None:
    """Raises InputError where one key has no part in what another one asks for."""
    if options.map is not None and options.balance != "uniform":
        raise InputError(
            f"moe.router.hash.balance is {options.balance} with moe.router.hash.map {options.map}, which says every "
            "id's experts; expected uniform, its default"
        )
    if options.weights == "equal":
        for one in fields(HashOptions):
            value = getattr(options, one.name)
            if one.name in ("score", "renormalise", "scale") and value != one.default:
                raise InputError(
                    f"moe.router.hash.{one.name} is {str(value).lower()} with moe.router.hash.weights equal, which has "
                    f"no gate; expected {str(one.default).lower()}, its default, or moe.router.hash.weights gate"
                )
        return
    if options.renormalise and sizes.top_k == 1:
        raise InputError(
            "moe.router.hash.weights is gate with moe.router.top_k 1 and moe.router.hash.renormalise true, by which "
            f"every token's one weight is {options.scale:g} and the gate learns nothing; expected renormalise false, "
            "or top_k 2 or more"
        )
    if not sizes.scale_by_gate:
        raise InputError(
            "moe.router.hash.weights is gate with moe.scale_by_gate false, which leaves its weights unused; expected "
            "equal"
        )


def map_of_ids(options: HashOptions) -> str:
    """See `RouterSpec.map_of_ids`: what `options` ask for."""
    return options.balance if options.map is None else FROM_FILE


def cost(options: HashOptions, sizes: RouterSizes) -> RouterCost:
    """A look-up, and a dense gate where weights come from one; no losses."""
    return RouterCost() if options.weights == "equal" else replace(dense_gate_cost(options, sizes), statistics="none")


ROUTER = RouterSpec(
    HashOptions, selection_rule="picks by token id alone", map_of_ids=map_of_ids, check=check, cost=cost
)
