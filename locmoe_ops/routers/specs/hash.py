"""Declaration of random routed experts (RRE) of PanGu-Sigma (arXiv 2303.10845)."""

from dataclasses import dataclass

from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSpec


@dataclass(frozen=True)
class HashOptions:
    balance: str = key(
        "uniform",
        "deal the vocabulary out evenly by count of ids, or by their frequency in the group's training text; "
        "cooccurrence: the same, but ids that occur in the same rows share a node's experts, so that a row leans to a "
        "node, for data.placement known_routes (ours)",
        choices=("uniform", "frequency", "cooccurrence"),
    )


def map_of_ids(options: HashOptions) -> str:
    """See `RouterSpec.map_of_ids`: what `options` ask for."""
    return options.balance


ROUTER = RouterSpec(HashOptions, selection_rule="picks by token id alone", top_k=1, map_of_ids=map_of_ids)
