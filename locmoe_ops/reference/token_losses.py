"""Losses of `topk`, `node_limited` and `moge` that need no statistics of tokens elsewhere, and their gradients: the
load-balancing loss within each sequence, and the router z-loss.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from locmoe_ops.reference.routing import Routing
from locmoe_ops.reference.spec import LayerSpec

Routings = Sequence[Routing]


class _Part(NamedTuple):
    """The tokens of one sequence that are of one expert group."""

    rank: int
    tokens: list[int]
    fraction: np.ndarray  # (n,) float64: how often an expert is among the k of largest score, / k / tokens


def sequence_loss(spec: LayerSpec, routings: Routings) -> float:
    """weight * mean over tokens of n * sum_i f_i P_i, taken over their sequence and group (DeepSeek-V3, Eq. 17-20).

    f_i counts the k largest scores, without biases and limits; P_i is the mean share of a token's scores.

    Args:
        spec: of the layer. routings: of each simulated rank.
    """
    total = 0.0
    for part in _parts(spec, routings):
        mean = routings[part.rank].probability[part.tokens].mean(axis=0)
        total += len(part.tokens) * spec.experts_per_group * float(np.dot(part.fraction, mean))
    return spec.topk_rules.sequence_loss * total / max(_count(routings), 1)


def sequence_gradient(spec: LayerSpec, routings: Routings) -> list[np.ndarray]:
    """Gradient of `sequence_loss` with respect to each rank's shares (T,n).

    Args:
        spec, routings: as for `sequence_loss`.
    """
    gradients = [np.zeros(routing.probability.shape) for routing in routings]
    for part in _parts(spec, routings):
        slope = spec.topk_rules.sequence_loss * spec.experts_per_group * part.fraction / _count(routings)
        gradients[part.rank][part.tokens] = slope
    return gradients


def z_loss(spec: LayerSpec, routings: Routings) -> float:
    """weight * mean over tokens of (log sum_i exp v_i)^2 (ST-MoE, arXiv 2202.08906, Eq. 5).

    Args:
        spec, routings: as for `sequence_loss`.
    """
    total = sum(float(np.logaddexp.reduce(values)) ** 2 for routing in routings for values in routing.values)
    return spec.topk_rules.z_loss * total / max(_count(routings), 1)


def z_gradient(spec: LayerSpec, routings: Routings) -> list[np.ndarray]:
    """Gradient of `z_loss` with respect to each rank's gate values (T,n).

    Args:
        spec, routings: as for `sequence_loss`.
    """
    gradients = [np.zeros(routing.probability.shape) for routing in routings]
    for routing, gradient in zip(routings, gradients):
        for t, values in enumerate(routing.values):
            partition = np.logaddexp.reduce(values)
            gradient[t] = spec.topk_rules.z_loss / _count(routings) * 2.0 * partition * np.exp(values - partition)
    return gradients


def _parts(spec: LayerSpec, routings: Routings) -> Iterator[_Part]:
    length = spec.topk_rules.sequence_length
    for rank, routing in enumerate(routings):
        for first in range(0, len(routing.score), length):
            sequence = range(first, first + length)
            for group in sorted({int(routing.group[t]) for t in sequence}):
                tokens = [t for t in sequence if routing.group[t] == group]
                chosen = np.zeros(spec.experts_per_group)
                for t in tokens:
                    score = routing.score[t]
                    for i in sorted(range(len(score)), key=lambda i: (-score[i], i))[: spec.top_k]:
                        chosen[i] += 1.0 / spec.top_k
                yield _Part(rank, tokens, chosen / len(tokens))


def _count(routings: Routings) -> int:
    return sum(len(routing.choice) for routing in routings)
