"""Which experts each token of one rank is sent to, and the way back from probabilities to gate and tokens."""

import math
from typing import NamedTuple, Optional

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.reference import topk
from locmoe_ops.reference.competition import expert_choice, library_cap
from locmoe_ops.reference.spec import LayerParameters, LayerSpec, RankTokens


class Routing(NamedTuple):
    """The choices for one rank's tokens, before capacity."""

    group: np.ndarray  # (T,) int64; expert group of the token's domain
    # (T,n) float64 over the experts of the token's group; hash: 1/k on the chosen ones, or all scores of its gate
    probability: np.ndarray
    choice: np.ndarray  # (T,k) int64; chosen experts as indices into the group, best first
    expert: np.ndarray  # (T,k) int64; global expert ids of the same; E where a choice is not taken up
    # (T,k) float64; the chosen experts' probabilities; of some over their sum; 0 if not taken up; hash: of its scores
    gate_weight: np.ndarray
    # (T,n) float64: topk, node_limited, moge: gate values, and scores, of which probabilities are shares; others: empty
    values: np.ndarray = np.zeros((0, 0))
    score: np.ndarray = np.zeros((0, 0))
    # (T,c) int64; indices into the group that the load-balancing loss counts, where these are not the choices
    counted: Optional[np.ndarray] = None


def route(spec: LayerSpec, parameters: LayerParameters, tokens: RankTokens) -> Routing:
    """Level 1 (domain -> group) and level 2 (the router) for every token of a rank.

    Ties go to the expert of lower index.

    Args:
        spec, parameters: of the layer. tokens: of the rank.
    """
    count, size = len(tokens.x), spec.experts_per_group
    group = np.array([spec.domain_groups[domain] for domain in tokens.domain], np.int64)
    if spec.router in topk.ROUTERS:
        return _route_topk(spec, parameters, tokens, group)
    probability = np.zeros((count, size))
    choice = np.zeros((count, spec.top_k), np.int64)
    for t in range(count):
        probability[t] = _token_probability(spec, parameters, tokens, t, group[t])
        if spec.router == "hash":
            choice[t] = _experts_of_id(parameters, tokens, t, group[t])
            continue
        score, local = probability[t] + _balance_of(parameters, group[t], size), _local_to(spec, tokens, t, group[t])
        partners = None if parameters.partners is None else parameters.partners[group[t] * size : (group[t] + 1) * size]
        choice[t] = _select_top_k(spec, probability[t], score, local, partners=partners)
    counted, absent = choice[:, :1].copy() if spec.renormalises else None, np.zeros(choice.shape, bool)
    if spec.router == "faster_moe" and not spec.library_cap:
        _keep_home(spec, tokens, group, probability, choice)
    elif spec.router == "faster_moe":
        local = np.array([_local_to(spec, tokens, t, group[t]) for t in range(count)])
        values = [_products(_gate_rows(spec, parameters, one), x) for one, x in zip(group, tokens.x)]
        choice = library_cap(np.array(values), local, tokens.home, spec.max_remote_fraction)
    elif spec.expert_choice:
        counted = choice
        choice, absent = expert_choice(probability, tokens.home * spec.num_groups + group, spec.top_k)
    expert = np.where(absent, spec.num_experts, choice + (group * size)[:, None])
    gate_weight = np.where(absent, 0.0, np.take_along_axis(probability, choice, axis=1))
    if spec.router == "hash" and spec.hash_score != "none":
        rules = _weight_rules(spec)
        gate_weight = np.stack([topk.weights_of(rules, probability[t], choice[t]) for t in range(count)])
    if spec.renormalises:
        gate_weight /= gate_weight.sum(axis=1, keepdims=True)
    if spec.router == "gshard":
        by_chance = np.zeros(count, bool) if tokens.chance is None else 2.0 * gate_weight[:, 1] <= tokens.chance
        expert[by_chance, 1], gate_weight[by_chance, 1] = spec.num_experts, 0.0
    return Routing(group, probability, choice, expert, gate_weight, counted=counted)


def _route_topk(spec: LayerSpec, parameters: LayerParameters, tokens: RankTokens, group: np.ndarray) -> Routing:
    """As `route`, of topk, node_limited and moge, given the tokens' groups (T,)."""
    count, size = len(tokens.x), spec.experts_per_group
    values, score, weight = np.zeros((count, size)), np.zeros((count, size)), np.zeros((count, spec.top_k))
    choice = np.zeros((count, spec.top_k), np.int64)
    nodes = [_nodes_of(spec, one) for one in range(spec.num_groups)] if spec.router == "node_limited" else []
    for t in range(count):
        values[t] = _products(_gate_rows(spec, parameters, group[t]), tokens.x[t])
        score[t] = topk.scores_of(spec.topk_rules, values[t])
        biased, local = score[t] + _balance_of(parameters, group[t], size), np.zeros(size, bool)
        if spec.local_term != "none":
            local = _local_to(spec, tokens, t, group[t])
        among = [list(range(size))]
        if spec.router == "node_limited":
            favour = biased + spec.local_strength * local if spec.local_term == "bias" else biased
            among = [topk.open_experts(spec.topk_rules, favour, nodes[group[t]], spec.top_k)]
        if spec.router == "moge":
            among = _device_groups(spec, group[t])
        picked = [_select_top_k(spec, score[t], biased, local, part, spec.top_k // len(among)) for part in among]
        choice[t] = [expert for rank in zip(*picked) for expert in rank]  # the best of every part first
        weight[t] = topk.weights_of(spec.topk_rules, score[t], choice[t])
    shares = score / score.sum(axis=1, keepdims=True)
    return Routing(group, shares, choice, choice + (group * size)[:, None], weight, values, score)


def _nodes_of(spec: LayerSpec, group: int) -> list[int]:
    """The node that holds each expert of the group, of several the first."""
    first = group * spec.experts_per_group
    return [
        next(node for node in range(spec.layout.nodes) if spec.is_local(node, first + i))
        for i in range(spec.experts_per_group)
    ]


def _device_groups(spec: LayerSpec, group: int) -> list[list[int]]:
    """The group's experts, as indices into it, by the device that holds them, or in `device_groups` equal parts."""
    size, parts = spec.experts_per_group, spec.topk_rules.device_groups
    if parts is not None:
        return [list(range(part * size // parts, (part + 1) * size // parts)) for part in range(parts)]
    held: dict[int, list[int]] = {}
    for i in range(size):
        held.setdefault(spec.placement.ep_index_of(group * size + i), []).append(i)
    return list(held.values())


def second_choices(spec: LayerSpec, tokens: RankTokens, routing: Routing) -> np.ndarray:
    """(T,) int64: of each token the likeliest expert of its group on its home node that it did not choose, -1 if there
    is none.

    Indices into the group; ties go to the lower one.

    Args:
        spec: of the layer. tokens, routing: of the rank.
    """
    second = np.full(len(routing.choice), -1)
    for t, chosen in enumerate(routing.choice):
        local = _local_to(spec, tokens, t, routing.group[t])
        left = [i for i in range(spec.experts_per_group) if local[i] and i not in chosen]
        if left:
            second[t] = min(left, key=lambda i: (-routing.probability[t, i], i))
    return second


def replace_choices(spec: LayerSpec, routing: Routing, moved: np.ndarray, second: np.ndarray) -> Routing:
    """`routing` with some choices replaced by their token's second one, which brings its own weight.

    Args:
        spec: of the layer. routing: of one rank. moved: (T,k) bool, the choices to replace.
        second: (T,) int, of `second_choices`.
    """
    choice, expert, weight = routing.choice.copy(), routing.expert.copy(), routing.gate_weight.copy()
    for t, k in np.argwhere(moved):
        choice[t, k] = second[t]
        expert[t, k] = routing.group[t] * spec.experts_per_group + second[t]
        weight[t, k] = routing.probability[t, second[t]]
    return routing._replace(choice=choice, expert=expert, gate_weight=weight)


def combine_weight(spec: LayerSpec, routing: Routing) -> np.ndarray:
    """(T,k) float64: the factor on each chosen expert's output."""
    return (
        routing.gate_weight
        if spec.scale_by_gate
        else np.full_like(routing.gate_weight, 1.0 / routing.gate_weight.shape[1])
    )


def through_weights(spec: LayerSpec, routing: Routing, weight_gradient: np.ndarray) -> np.ndarray:
    """From the gradient of the gate weights to that of the probabilities, of topk, node_limited and moge to that of the
    scores: (T,n) float64.

    Args:
        spec: of the layer. routing: of one rank. weight_gradient: (T,k), 0 where a choice is not taken up.
    """
    gradient = np.zeros(routing.probability.shape)
    if spec.router in topk.ROUTERS:
        for t, chosen in enumerate(routing.choice):
            gradient[t] = topk.through_weights(spec.topk_rules, routing.score[t], chosen, weight_gradient[t])
        return gradient
    if spec.router == "hash" and spec.hash_score != "none":
        for t, chosen in enumerate(routing.choice):
            gradient[t] = topk.through_weights(_weight_rules(spec), routing.probability[t], chosen, weight_gradient[t])
        return gradient
    for t, chosen in enumerate(routing.choice):
        of_chosen = weight_gradient[t]
        if spec.renormalises:
            # w_i = p_i / s with s the sum over the chosen: dw_j/dp_i = (1 if i = j) / s - p_j / s^2
            p = routing.probability[t, chosen]
            of_chosen = of_chosen / p.sum() - np.dot(of_chosen, p) / p.sum() ** 2
        gradient[t, chosen] = of_chosen
    return gradient


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
    """From the gradient of the probabilities to those of the tokens (T,d) and of the gate (E,d).

    Args:
        spec, parameters: of the layer. tokens, routing: of one rank. probability_gradient: (T,n); of topk, node_limited
            and moge that of the gate's values.

    Returns: both float64; None for the gate where none is learned.
    """
    x_gradient = np.zeros(tokens.x.shape)
    gate_gradient = np.zeros((spec.gate_rows, tokens.x.shape[1])) if spec.learns_gate else None
    if spec.router == "hash" and spec.hash_score == "none":
        return x_gradient, gate_gradient
    for t in range(len(tokens.x)):
        rows, x = _gate_rows(spec, parameters, routing.group[t]), tokens.x[t].astype(np.float64)
        p, p_gradient = routing.probability[t], probability_gradient[t]
        value_gradient = p * (p_gradient - np.dot(p, p_gradient))
        if spec.router in topk.ROUTERS:
            value_gradient = probability_gradient[t]
        if spec.router == "hash":
            value_gradient = topk.values_gradient(_weight_rules(spec), rows @ x, p_gradient)
        if spec.router == "smile":
            value_gradient = _through_levels(rows @ x, spec.num_nodes, p_gradient)
        if spec.router == "locmoe":
            values = locmoe_values(spec, parameters, tokens, t, routing.group[t])
            value_gradient = spec.value_scale * value_gradient
            if _is_rectified(spec, values):
                value_gradient = np.where(values > 0.0, value_gradient, 0.0)  # through the ReLU
            if spec.normalise == "token":
                unit, deviation = _standardised(_centred(parameters, routing.group[t], rows @ x))
                centred = value_gradient - value_gradient.mean()
                value_gradient = (centred - unit * (value_gradient * unit).mean()) / deviation
        if spec.router == "etr":  # through the cosines
            units, length = rows / np.linalg.norm(rows, axis=1, keepdims=True), _length(x)
            of_cosines = value_gradient / spec.temperature
            x_gradient[t] = units.T @ of_cosines / length - np.dot(of_cosines, units @ x) * x / length**3
            continue
        x_gradient[t] = rows.T @ value_gradient
        if gate_gradient is not None:
            first = routing.group[t] * len(rows)
            gate_gradient[first : first + len(rows)] += np.outer(value_gradient, x)
    return x_gradient, gate_gradient


def _token_probability(
    spec: LayerSpec, parameters: LayerParameters, tokens: RankTokens, t: int, group: int
) -> np.ndarray:
    """(n,) float64 over the experts of `group`, for token t."""
    if spec.router == "hash":
        chosen = _experts_of_id(parameters, tokens, t, group)
        if spec.hash_score == "none":
            return np.eye(spec.experts_per_group)[chosen].sum(0) / spec.top_k
    rows, x = _gate_rows(spec, parameters, group), tokens.x[t].astype(np.float64)
    values = _products(rows, x)
    if spec.router == "locmoe":
        values = locmoe_values(spec, parameters, tokens, t, group)
        values = spec.value_scale * (np.maximum(values, 0.0) if _is_rectified(spec, values) else values)
    if spec.router == "hash":
        return topk.scores_of(_weight_rules(spec), values)
    if spec.router == "smile":
        of_node, of_expert = _levels(values, spec.num_nodes)
        return np.outer(of_node, of_expert).reshape(-1)
    if spec.router == "etr":
        values = values / (np.linalg.norm(rows, axis=1) * _length(x)) / spec.temperature
    return topk.softmax(values)


def _experts_of_id(parameters: LayerParameters, tokens: RankTokens, t: int, group: int) -> np.ndarray:
    """(k,) int: the experts within `group` that the map gives token t."""
    assert parameters.table is not None
    return np.atleast_1d(parameters.table[group, tokens.token_ids[t]])


def _weight_rules(spec: LayerSpec) -> topk.TopKRules:
    """How hash's gate gives weights: as the gate of topk does."""
    return topk.TopKRules(spec.hash_score, spec.hash_renormalise, spec.hash_scale)


def _levels(values: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """smile: the probabilities of nodes (V,) and of the experts inside one (m,), given a token's values (V+m,)."""
    return topk.softmax(values[:nodes]), topk.softmax(values[nodes:])


def _through_levels(values: np.ndarray, nodes: int, gradient: np.ndarray) -> np.ndarray:
    """smile: from the gradient of the products p_v q_j (n,) to that of the values (V+m,) behind them."""
    of_node, of_expert = _levels(values, nodes)
    gradient = gradient.reshape(nodes, -1)
    parts = []
    for p, p_gradient in ((of_node, gradient @ of_expert), (of_expert, of_node @ gradient)):
        parts.append(p * (p_gradient - np.dot(p, p_gradient)))
    return np.concatenate(parts)


def locmoe_values(spec: LayerSpec, parameters: LayerParameters, tokens: RankTokens, t: int, group: int) -> np.ndarray:
    """(n,) float64: w_i x + eps_i of one token, what enters the ReLU of LocMoE's Eq. 2; w_i x may be centred and
    standardised.

    Args:
        spec, parameters: of the layer. tokens: of one rank. t: the token. group: its expert group.
    """
    values = _centred(parameters, group, _products(_gate_rows(spec, parameters, group), tokens.x[t]))
    if spec.normalise == "token":
        values, _ = _standardised(values)
    return values if tokens.noise is None else values + tokens.noise[t]


def is_undecided(spec: LayerSpec, values: np.ndarray) -> bool:
    """Whether fewer than k of a token's values (n,) are above 0, so that ReLU leaves a choice to the rule of ties.
    Without the ReLU no token is undecided.
    """
    return spec.rectify and int((values > 0.0).sum()) < spec.top_k


def _is_rectified(spec: LayerSpec, values: np.ndarray) -> bool:
    return spec.rectify and not (spec.ties == "unrectified" and is_undecided(spec, values))


def _centred(parameters: LayerParameters, group: int, values: np.ndarray) -> np.ndarray:
    """Values (n,) of the group's experts less their means over other tokens, where there are any."""
    if parameters.value_mean is None:
        return values
    return values - parameters.value_mean[group * len(values) : (group + 1) * len(values)]


def _standardised(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Values (n,) brought to mean 0 and deviation 1; and the deviation, which is never 0."""
    deviation = math.sqrt(float(values.var()) + 1e-6)
    return (values - values.mean()) / deviation, deviation


def _gate_rows(spec: LayerSpec, parameters: LayerParameters, group: int) -> np.ndarray:
    """(n,d) float64: the gate weights of one group's experts; GrAP has the same rows for every group."""
    size = spec.gate_rows // spec.num_groups
    if not spec.learns_gate:
        return grap_weights(size, parameters.w1.shape[1])
    assert parameters.gate is not None
    return parameters.gate[group * size : (group + 1) * size].astype(np.float64)


def _products(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(n,) float64: of each of (n,d) `rows` with (d,) `x`. BLAS rounds by where in memory x is, and equal tokens must
    have equal values: who of them comes first is decided by their order.
    """
    return (rows.astype(np.float64) * x.astype(np.float64)).sum(axis=1)


def _length(x: np.ndarray) -> float:
    return math.sqrt(float(_products(x[None], x)[0]) + 1e-12)  # a token of zeros has cosine 0 to everything


def _local_to(spec: LayerSpec, tokens: RankTokens, t: int, group: int) -> np.ndarray:
    """(n,) bool: the experts of the group that are on token t's home node."""
    node, first = spec.layout.node_of(int(tokens.home[t])), group * spec.experts_per_group
    return np.array([spec.is_local(node, first + i) for i in range(spec.experts_per_group)])


def _balance_of(parameters: LayerParameters, group: int, size: int) -> np.ndarray:
    """(n,) float64: what is added to the scores of the group's experts; zeros without such a bias."""
    if parameters.balance is None:
        return np.zeros(size)
    return parameters.balance[group * size : (group + 1) * size].astype(np.float64)


def _select_top_k(
    spec: LayerSpec,
    probability: np.ndarray,
    score: np.ndarray,
    local: np.ndarray,
    among: Optional[list[int]] = None,
    count: Optional[int] = None,
    partners: Optional[np.ndarray] = None,
) -> list[int]:
    """The k experts of one token, one after another: by `score` (n,), with the locality bias for those that are
    `local` (n,) bool. Or `count` experts, `among` some alone. Of c2r, those after the first are among the `partners`
    (n,n) bool of that; of smile, all are on the likeliest node.
    """
    left, chosen = list(range(len(probability))) if among is None else list(among), []
    if spec.router == "smile":
        of_nodes = probability.reshape(spec.num_nodes, -1).sum(1)
        inside = len(probability) // spec.num_nodes
        left = [i for i in left if i // inside == int(of_nodes.argmax())]
    if spec.local_term == "bias":
        score = score + spec.local_strength * local
    for _ in range(spec.top_k if count is None else count):
        candidates = left
        if spec.local_term == "margin":
            enough = (1.0 - spec.local_strength) * max(probability[i] for i in left)
            candidates = [i for i in left if local[i] and probability[i] > enough] or left
        chosen.append(min(candidates, key=lambda i: (-score[i], i)))
        left.remove(chosen[-1])
        if spec.router == "c2r":
            assert partners is not None
            left = [i for i in left if partners[chosen[0], i]]
    return chosen


def _keep_home(
    spec: LayerSpec, tokens: RankTokens, group: np.ndarray, probability: np.ndarray, choice: np.ndarray
) -> None:
    """The cap of `faster_moe` (ours, after FasterMoE): replaces in `choice` (T,k) those of tokens that may not leave
    their node.
    """
    # home -> (minus what staying costs, token) of tokens that want to leave
    losses: dict[int, list[tuple[float, int]]] = {}
    at_home = choice.copy()
    for t in range(len(choice)):
        local = _local_to(spec, tokens, t, group[t])
        at_home[t] = sorted(range(len(local)), key=lambda i: (not local[i], -probability[t, i], i))[: spec.top_k]
        if not local[choice[t]].all():
            cost = probability[t, choice[t]].sum() - probability[t, at_home[t]].sum()
            losses.setdefault(int(tokens.home[t]), []).append((-cost, t))
    for home, leaving in losses.items():
        allowed = math.floor(spec.max_remote_fraction * int((tokens.home == home).sum()) + 1e-3)
        for _, t in sorted(leaving)[allowed:]:
            choice[t] = at_home[t]
