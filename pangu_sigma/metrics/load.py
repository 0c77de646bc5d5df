"""How evenly tokens are spread over the experts of a layer, how many nodes a token needs, and what an expert says of a
token's domain. Counts in, numbers out; nothing here needs MindSpore.

Shape legend: M layers, E experts, D domains, k experts a token, T tokens.
"""

from typing import Optional

import numpy as np


def max_violation(load: np.ndarray) -> np.ndarray:
    """MaxVio = max_e load_e / mean load - 1, of each layer: 0 where all experts have the same load, E - 1 where one has
    all of it. As in Loss-Free Balancing (arXiv 2408.15664), of one batch.

    Args:
        load: <float>[..., E], assignments of each expert before drops.

    Returns: <float64>[...].
    """
    return np.asarray(load.max(-1) / _mean(load) - 1.0)


def min_violation(load: np.ndarray) -> np.ndarray:
    """MinVio = 1 - min_e load_e / mean load, of each layer: 0 where all experts have the same load, 1 where one has
    none. The counterpart of MaxVio; that it counts from the mean downwards, and so is not negative, is our choice.

    Args:
        load: <float>[..., E], assignments of each expert before drops.

    Returns: <float64>[...].
    """
    return np.asarray(1.0 - load.min(-1) / _mean(load))


def load_entropy(load: np.ndarray) -> np.ndarray:
    """-sum_e p_e ln p_e / ln E with p the experts' shares of the load, of each layer: 1 where they are equal, 0 where
    one expert has all; 1 of a single expert.

    Args:
        load: <float>[..., E], assignments of each expert before drops.

    Returns: <float64>[...].
    """
    share = load / np.maximum(load.sum(-1, keepdims=True), 1.0)
    return _entropy(share) / np.log(load.shape[-1]) if load.shape[-1] > 1 else np.ones(load.shape[:-1])


def specialisation(load: np.ndarray) -> Optional[float]:
    """I(D; X) / H(D): how much of a token's domain its expert tells, in [0, 1]. 0 where every domain uses the experts
    alike, 1 where no two domains share an expert. None of a single domain.

    Args:
        load: <float>[D, E], assignments of each domain's tokens to each expert.
    """
    joint = load / max(float(load.sum()), 1.0)
    of_domain, of_expert = joint.sum(1), joint.sum(0)
    unsure = float(_entropy(of_domain))
    if unsure == 0.0:
        return None
    shared = unsure + float(_entropy(of_expert)) - float(_entropy(joint.reshape(-1)))
    return min(max(shared / unsure, 0.0), 1.0)


def effective_experts(load: np.ndarray) -> np.ndarray:
    """exp of the entropy of the experts' shares: as many experts, used alike, have the same entropy; 1 to E.

    Args:
        load: <float>[..., E], assignments of each expert.

    Returns: <float64>[...].
    """
    return np.exp(_entropy(load / np.maximum(load.sum(-1, keepdims=True), 1.0)))


def nodes_touched(expert: np.ndarray, node: np.ndarray) -> np.ndarray:
    """On how many different nodes the experts of each token are.

    Args:
        expert: <int>[..., k]; E where a choice was not taken up.
        node: <int>[E], the node of each expert.

    Returns: <int64>[...].
    """
    of_choice = np.append(node, -1)[expert]
    return np.asarray(sum((of_choice == number).any(-1).astype(np.int64) for number in np.unique(node)))


def _mean(load: np.ndarray) -> np.ndarray:
    return np.maximum(load.mean(-1), np.finfo(np.float64).tiny)  # of nothing at all every quotient is 0


def _entropy(share: np.ndarray) -> np.ndarray:
    """In nats, of the last axis."""
    return np.asarray(-(share * np.log(np.where(share > 0.0, share, 1.0))).sum(-1))
