"""What tells `topk`, `node_limited` and `moge` from a softmax router, token by token, in float64: scores, weights,
where a token may go, and the way back.

Shape legend: n experts of a group, k experts a token is sent to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from locmoe_ops.errors import InputError

ROUTERS = ("topk", "node_limited", "moge")
SCORE_FUNCTIONS = ("softmax", "sigmoid", "sqrt_softplus")


@dataclass(frozen=True)
class TopKRules:
    """The keys of these routers."""

    score_function: str = "softmax"  # one of SCORE_FUNCTIONS
    normalise_weights: bool = False
    weight_scale: float = 1.0
    max_nodes: int = 1  # node_limited: on which a token's experts lie
    device_groups: Optional[int] = None  # moge: equal parts of a group's experts; None: by the device that holds them
    sequence_loss: float = 0.0  # weight of the load-balancing loss within each sequence
    z_loss: float = 0.0  # weight of the mean of logsumexp(values) ** 2
    sequence_length: int = 1  # tokens of each sequence, which are neighbours on their rank


def softmax(values: np.ndarray) -> np.ndarray:
    """(n,) float64 of `values` (n,)."""
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def scores_of(rules: TopKRules, values: np.ndarray) -> np.ndarray:
    """(n,) float64: the scores of one token's experts.

    Args:
        rules: of the router. values: (n,), of the gate.
    """
    if rules.score_function == "softmax":
        return softmax(values)
    if rules.score_function == "sigmoid":
        return 1.0 / (1.0 + np.exp(-values))
    if rules.score_function == "sqrt_softplus":
        return np.sqrt(np.logaddexp(0.0, values))
    raise InputError(f"score_function is {rules.score_function!r}, expected one of {', '.join(SCORE_FUNCTIONS)}")


def values_gradient(rules: TopKRules, values: np.ndarray, score_gradient: np.ndarray) -> np.ndarray:
    """(n,) float64: from the gradient of a token's scores to that of the gate's values.

    Args:
        rules, values: as for `scores_of`. score_gradient: (n,).
    """
    scores = scores_of(rules, values)
    if rules.score_function == "softmax":
        return scores * (score_gradient - np.dot(scores, score_gradient))
    if rules.score_function == "sigmoid":
        return scores * (1.0 - scores) * score_gradient
    return 0.5 / scores / (1.0 + np.exp(-values)) * score_gradient


def shares_gradient(scores: np.ndarray, share_gradient: np.ndarray) -> np.ndarray:
    """(n,) float64: from the gradient of a token's shares, scores / sum of scores, to that of its scores.

    Args:
        scores, share_gradient: (n,).
    """
    total = scores.sum()
    return share_gradient / total - np.dot(share_gradient, scores) / total**2


def weights_of(rules: TopKRules, scores: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """(k,) float64: the weights of a token's chosen experts.

    Args:
        rules: of the router. scores: (n,). choice: (k,) int, indices into the group.
    """
    chosen = scores[choice]
    return rules.weight_scale * (chosen / chosen.sum() if rules.normalise_weights else chosen)


def through_weights(
    rules: TopKRules, scores: np.ndarray, choice: np.ndarray, weight_gradient: np.ndarray
) -> np.ndarray:
    """(n,) float64: from the gradient of a token's weights to that of its scores.

    Args:
        rules, scores, choice: as for `weights_of`. weight_gradient: (k,).
    """
    gradient, of_chosen = np.zeros(len(scores)), rules.weight_scale * weight_gradient
    gradient[choice] = shares_gradient(scores[choice], of_chosen) if rules.normalise_weights else of_chosen
    return gradient


def open_experts(rules: TopKRules, score: np.ndarray, node: Sequence[int], top_k: int) -> list[int]:
    """The experts of the group that `node_limited` leaves open to a token: those on its best nodes, a node being as
    good as the sum of its k / `max_nodes` best experts.

    Args:
        rules: of the router. score: (n,) by which experts are picked. node: of each expert. top_k: k.
    """
    counted = -(-top_k // min(rules.max_nodes, len(set(node))))
    goodness = {
        one: sum(sorted((score[i] for i in range(len(score)) if node[i] == one), reverse=True)[:counted])
        for one in sorted(set(node))
    }
    best = sorted(goodness, key=lambda one: -goodness[one])[: rules.max_nodes]  # stable: ties go to the lower node
    return [i for i in range(len(score)) if node[i] in best]
