"""Declaration of random routed experts (RRE) of PanGu-Sigma (arXiv 2303.10845)."""

from dataclasses import dataclass

from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSpec


@dataclass(frozen=True)
class HashOptions:
    balance: str = key(
        "uniform",
        "deal the vocabulary out evenly by count of ids, or by their frequency in the group's training text",
        choices=("uniform", "frequency"),
    )


ROUTER = RouterSpec(HashOptions, selection_rule="picks by token id alone", top_k=1)
