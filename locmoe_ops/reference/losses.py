"""Load-balancing, locality and divergence losses of the reference layer, and their gradients for the routing
probabilities.

The first two are sums over cells. A cell holds the tokens of one expert group within one statistics group, a set of
home ranks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from locmoe_ops.reference.routing import Routing
from locmoe_ops.reference.spec import LayerSpec, RankTokens

Ranks = Sequence[RankTokens]
Routings = Sequence[Routing]
CellKey = tuple[int, int]  # statistics group, expert group


class Cell(NamedTuple):
    """Sums over the tokens of one expert group in one statistics group."""

    tokens: int
    chosen: np.ndarray  # (n,) float64; assignments before drops, divided by top_k
    probability: np.ndarray  # (n,) float64; sum of probabilities


def aux_loss(spec: LayerSpec, ranks: Ranks, routings: Routings) -> float:
    """L_aux = alpha * sum over cells of (share of the tokens) * sum_i f_i P_i / c_i.

    c is the share of a cell's tokens meant for expert i: 1/n (LocMoE Eq. 5 within each cell), or as the links say
    (ta_moe). Of smile the sum is over nodes, and with beta in place of alpha another one over the experts inside them.

    Args:
        spec: of the layer. ranks, routings: tokens and their choices, one entry a simulated rank.
    """
    if spec.router == "hash":
        return 0.0
    total = _count_tokens(ranks)
    loss = 0.0
    for key, cell in _cells(spec, _aux_scope(spec), ranks, routings).items():
        loss += cell.tokens / total * float(np.dot(_penalties(spec, key, cell), cell.probability / cell.tokens))
    return loss


def locality_loss(spec: LayerSpec, ranks: Ranks, routings: Routings) -> float:
    """L_loc = mu * sum over (node, group) of (share of the tokens) * KL(D_c || D_l), in nats (LocMoE Eq. 6).

    Args:
        spec, ranks, routings: as for `aux_loss`.
    """
    if spec.router not in ("locmoe", "etr"):
        return 0.0
    total = _count_tokens(ranks)
    loss = 0.0
    for (node, group), cell in _cells(spec, "node", ranks, routings).items():
        current, localised = cell.probability / cell.tokens, localised_distribution(spec, node, group)
        divergence = sum(c * math.log(c / target) for c, target in zip(current, localised) if c > 0.0)
        loss += cell.tokens / total * divergence
    return spec.mu * loss


def divergence_loss(spec: LayerSpec, ranks: Ranks, routings: Routings) -> float:
    """weight * sum over statistics groups of (share of the tokens) * (H(domain) - JSD), in nats.

    JSD = sum_d w_d KL(p_d || sum_e w_e p_e), with p_d the mean probability of a domain's tokens, w_d their share.

    Args:
        spec, ranks, routings: as for `aux_loss`.
    """
    loss, total = 0.0, _count_tokens(ranks)
    for of_domains in _domain_means(spec, ranks, routings).values():
        tokens = sum(count for count, _ in of_domains.values())
        shares = {domain: count / tokens for domain, (count, _) in of_domains.items()}
        mixture = np.sum([shares[domain] * mean for domain, (_, mean) in of_domains.items()], axis=0)
        divergence = sum(
            shares[domain] * p * math.log(p / m)
            for domain, (_, mean) in of_domains.items()
            for p, m in zip(mean, mixture)
            if p > 0.0
        )
        entropy = -sum(share * math.log(share) for share in shares.values())
        loss += tokens / total * (entropy - divergence)
    return spec.divergence * loss


def divergence_loss_gradient(spec: LayerSpec, ranks: Ranks, routings: Routings) -> list[np.ndarray]:
    """Gradient of `divergence_loss` with respect to each rank's probabilities (T,n).

    Args:
        spec, ranks, routings: as for `aux_loss`.
    """
    total, means = _count_tokens(ranks), _domain_means(spec, ranks, routings)
    gradients = [np.zeros(routing.probability.shape) for routing in routings]
    for tokens, gradient in zip(ranks, gradients):
        for t in range(len(tokens.x) if spec.divergence else 0):
            of_domains = means[_statistics_group(spec, spec.statistics, int(tokens.home[t]))]
            sums = {domain: count * mean for domain, (count, mean) in of_domains.items()}
            gradient[t] = spec.divergence / total * np.log(sum(sums.values()) / sums[int(tokens.domain[t])])
    return gradients


def aux_loss_gradient(spec: LayerSpec, ranks: Ranks, routings: Routings) -> list[np.ndarray]:
    """Gradient of `aux_loss` with respect to each rank's probabilities (T,n); the counted choices are constants.

    Args:
        spec, ranks, routings: as for `aux_loss`.
    """
    slopes = {}
    total = _count_tokens(ranks)
    if spec.router != "hash":
        for key, cell in _cells(spec, _aux_scope(spec), ranks, routings).items():
            slopes[key] = _penalties(spec, key, cell) / total
    return _spread(spec, _aux_scope(spec), ranks, routings, slopes)


def locality_loss_gradient(spec: LayerSpec, ranks: Ranks, routings: Routings) -> list[np.ndarray]:
    """Gradient of `locality_loss` with respect to each rank's probabilities (T,n).

    Args:
        spec, ranks, routings: as for `aux_loss`.
    """
    slopes = {}
    total = _count_tokens(ranks)
    if spec.router in ("locmoe", "etr"):
        for key, cell in _cells(spec, "node", ranks, routings).items():
            current, localised = cell.probability / cell.tokens, localised_distribution(spec, *key)
            # Where D_c is 0 every probability is 0 and softmax passes nothing back: any finite slope will do.
            safe = np.where(current > 0.0, current, 1.0)
            slopes[key] = spec.mu / total * (np.log(safe / localised) + 1.0)
    return _spread(spec, "node", ranks, routings, slopes)


def _penalties(spec: LayerSpec, key: CellKey, cell: Cell) -> np.ndarray:
    """(n,) float64: what a mean probability of each expert adds to the load-balancing loss of a cell."""
    fraction = cell.chosen / cell.tokens
    if spec.router != "smile":
        return spec.alpha * fraction / meant_shares(spec, *key)
    of_levels = fraction.reshape(spec.num_nodes, -1)  # (V, m) <- (n,)
    of_nodes, of_places = of_levels.sum(1, keepdims=True), of_levels.sum(0, keepdims=True)
    both = spec.alpha * spec.num_nodes * of_nodes + spec.beta * of_levels.shape[1] * of_places
    return both.reshape(-1)  # (n,) <- (V, m)


def meant_shares(spec: LayerSpec, statistics_group: int, group: int) -> np.ndarray:
    """c (n,) float64: equal shares; of ta_moe, in proportion to the bandwidth between the tokens' node and the experts.

    Args:
        spec: of the layer. statistics_group, group: the cell, see `CellKey`.
    """
    size = spec.experts_per_group
    if spec.router != "ta_moe":
        return np.full(size, 1.0 / size)
    ranks = {"rank": 1, "node": spec.layout.ranks_per_node, "expert_parallel": spec.layout.expert}[_aux_scope(spec)]
    node = spec.layout.node_of(statistics_group * ranks)
    bandwidth = np.array([spec.bandwidth_ratio if spec.is_local(node, group * size + i) else 1.0 for i in range(size)])
    return bandwidth / bandwidth.sum()


def localised_distribution(spec: LayerSpec, node: int, group: int) -> np.ndarray:
    """D_l (n,) float64: uniform over the group's experts on this node, or over all of them where the node has none.

    A share `smoothing` is spread over all of them in any case, so that KL stays finite.

    Args:
        spec: of the layer. node: of the layout. group: expert group.
    """
    size = spec.experts_per_group
    local = np.array([spec.is_local(node, group * size + i) for i in range(size)], np.float64)
    if not local.any():
        local[:] = 1.0
    return (1.0 - spec.smoothing) * local / local.sum() + spec.smoothing / size


def _aux_scope(spec: LayerSpec) -> str:
    """The targets of ta_moe belong to nodes: its statistics cannot be wider."""
    wider = spec.statistics == "global" or (
        spec.statistics == "expert_parallel" and spec.layout.expert > spec.layout.ranks_per_node
    )
    return "node" if spec.router == "ta_moe" and wider else spec.statistics


def _statistics_group(spec: LayerSpec, scope: str, home: int) -> int:
    group = home // spec.layout.expert  # the layout has no tensor-parallel ranks
    return {"rank": home, "node": spec.layout.node_of(home), "expert_parallel": group, "global": 0}[scope]


def _cells(spec: LayerSpec, scope: str, ranks: Ranks, routings: Routings) -> dict[CellKey, Cell]:
    """The cells that hold tokens."""
    size = spec.experts_per_group
    cells: dict[CellKey, Cell] = {}
    for tokens, routing in zip(ranks, routings):
        for t in range(len(tokens.x)):
            key = _statistics_group(spec, scope, int(tokens.home[t])), int(routing.group[t])
            cell = cells.get(key, Cell(0, np.zeros(size), np.zeros(size)))
            counted = routing.choice[t] if routing.counted is None else routing.counted[t]
            for i in counted:
                cell.chosen[i] += 1.0 / len(counted)
            cells[key] = Cell(cell.tokens + 1, cell.chosen, cell.probability + routing.probability[t])
    return cells


def _domain_means(spec: LayerSpec, ranks: Ranks, routings: Routings) -> dict[int, dict[int, tuple[int, np.ndarray]]]:
    """By statistics group and domain: its tokens, and their mean probability (n,). Nothing without such a loss."""
    rows: dict[int, dict[int, list[np.ndarray]]] = {}
    for tokens, routing in zip(ranks, routings):
        for t in range(len(tokens.x) if spec.divergence else 0):
            group = _statistics_group(spec, spec.statistics, int(tokens.home[t]))
            rows.setdefault(group, {}).setdefault(int(tokens.domain[t]), []).append(routing.probability[t])
    return {
        group: {domain: (len(found), np.mean(found, axis=0)) for domain, found in of_domains.items()}
        for group, of_domains in rows.items()
    }


def _spread(
    spec: LayerSpec, scope: str, ranks: Ranks, routings: Routings, slopes: dict[CellKey, np.ndarray]
) -> list[np.ndarray]:
    """Give every token the slope (n,) of its cell; zeros where no cell has one."""
    gradients = []
    for tokens, routing in zip(ranks, routings):
        gradient = np.zeros(routing.probability.shape)
        for t in range(len(tokens.x)):
            key = _statistics_group(spec, scope, int(tokens.home[t])), int(routing.group[t])
            gradient[t] = slopes.get(key, 0.0)
        gradients.append(gradient)
    return gradients


def _count_tokens(ranks: Sequence[RankTokens]) -> int:
    return sum(len(tokens.x) for tokens in ranks)
