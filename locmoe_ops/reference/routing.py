"""Which experts each token of one rank is sent to, and the way back from probabilities to gate and tokens."""

from typing import NamedTuple, Optional

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.reference.spec import LayerParameters, LayerSpec, RankTokens


class Routing(NamedTuple):
    """The choices for one rank's tokens, before capacity."""

    group: np.ndarray  # (T,) int64; expert group of the token's domain
    probability: np.ndarray  # (T,n) float64 over the experts of the token's group; hash: 1 on the chosen one
    expert: np.ndarray  # (T,k) int64; global expert ids, best first
    gate_weight: np.ndarray  # (T,k) float64; the chosen experts' probabilities


def route(spec: LayerSpec, parameters: LayerParameters, tokens: RankTokens) -> Routing:
    """Level 1 (domain -> group) and level 2 (the router) for every token of a rank.

    Ties go to the expert of lower index.
    """
    count, size = len(tokens.x), spec.experts_per_group
    group = np.zeros(count, np.int64)
    probability = np.zeros((count, size))
    expert = np.zeros((count, spec.top_k), np.int64)
    gate_weight = np.zeros((count, spec.top_k))
    for t in range(count):
        group[t] = spec.domain_groups[tokens.domain[t]]
        probability[t] = _token_probability(spec, parameters, tokens, t, group[t])
        ranking = np.argsort(-probability[t], kind="stable")
        for choice, i in enumerate(ranking[: spec.top_k]):
            expert[t, choice] = group[t] * size + i
            gate_weight[t, choice] = probability[t, i]
    return Routing(group, probability, expert, gate_weight)


def combine_weight(spec: LayerSpec, routing: Routing) -> np.ndarray:
    """(T,k) float64: the factor on each chosen expert's output."""
    return routing.gate_weight if spec.scale_by_gate else np.ones_like(routing.gate_weight)


def grap_weights(experts: int, hidden: int) -> np.ndarray:
    """The fixed gate of LocMoE (arXiv 2401.13920, Eq. 4): (n,d) float64, row i averages the i-th block of d/n features.

    Raises `InputError` where n does not divide d.
    """
    if hidden % experts:
        raise InputError(f"GrAP gate: hidden size {hidden} is not divisible by the {experts} experts of a group")
    width = hidden // experts
    weights = np.zeros((experts, hidden))
    for i in range(experts):
        weights[i, i * width : (i + 1) * width] = experts / hidden
    return weights


def gate_gradients(
    spec: LayerSpec, parameters: LayerParameters, tokens: RankTokens, routing: Routing, probability_gradient: np.ndarray
) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """From the gradient of the probabilities (T,n) to that of the tokens (T,d) and of the gate.

    The gate's is (E,d) float64, or None where no gate is learned.
    """
    x_gradient = np.zeros(tokens.x.shape)
    gate_gradient = np.zeros((spec.num_experts, tokens.x.shape[1])) if spec.learns_gate else None
    if spec.router == "hash":
        return x_gradient, gate_gradient
    for t in range(len(tokens.x)):
        rows, x = _gate_rows(spec, parameters, routing.group[t]), tokens.x[t].astype(np.float64)
        p, p_gradient = routing.probability[t], probability_gradient[t]
        value_gradient = p * (p_gradient - np.dot(p, p_gradient))
        if spec.router == "locmoe":
            value_gradient = np.where(rows @ x > 0.0, value_gradient, 0.0)
        x_gradient[t] = rows.T @ value_gradient
        if gate_gradient is not None:
            first = routing.group[t] * spec.experts_per_group
            gate_gradient[first : first + spec.experts_per_group] += np.outer(value_gradient, x)
    return x_gradient, gate_gradient


def _token_probability(
    spec: LayerSpec, parameters: LayerParameters, tokens: RankTokens, t: int, group: int
) -> np.ndarray:
    """(n,) float64 over the experts of `group`, for token t."""
    if spec.router == "hash":
        assert parameters.table is not None
        return np.eye(spec.experts_per_group)[parameters.table[group, tokens.token_ids[t]]]
    values = _gate_rows(spec, parameters, group) @ tokens.x[t].astype(np.float64)
    if spec.router == "locmoe":
        values = np.maximum(values, 0.0)  # LocMoE Eq. 2
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def _gate_rows(spec: LayerSpec, parameters: LayerParameters, group: int) -> np.ndarray:
    """(n,d) float64: the gate weights of one group's experts; GrAP has the same rows for every group."""
    size = spec.experts_per_group
    if not spec.learns_gate:
        return grap_weights(size, parameters.w1.shape[1])
    assert parameters.gate is not None
    return parameters.gate[group * size : (group + 1) * size].astype(np.float64)
