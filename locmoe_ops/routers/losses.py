"""Router losses as pure functions of summed statistics. They return numbers that are the same on every rank.

Shape legend: S statistics groups (sets of tokens over which sums are taken), V nodes, D domains, G groups,
E experts, n = E / G.
Sums over ranks are taken by the caller, so the functions mean the same at any parallel degree.
"""

from mindspore import Tensor, ops

from locmoe_ops.functions import log

_TINY = 1e-30  # keeps logarithms and quotients finite; far below any probability that matters in float32


def load_balancing_loss(counts: Tensor, probabilities: Tensor, num_groups: int) -> Tensor:
    """`n * sum_i f_i P_i` (LocMoE Eq. 5, Switch Eq. 4), averaged over the tokens of all statistics groups and
    expert groups.

    Args:
        counts: <float32>[S, E], assignments to each expert divided by top_k; no gradient flows through it.
        probabilities: <float32>[S, E], sum over tokens of each expert's probability.
        num_groups: G; a token's probabilities cover the n experts of its group.

    Returns: <float32> scalar; 1 when every expert group is balanced in every statistics group. An expert group without
    tokens adds nothing.
    """
    sets, experts = counts.shape
    per_group = experts // num_groups
    counts = ops.stop_gradient(counts).reshape(sets, num_groups, per_group)  # (S, G, n) <- (S, E)
    probabilities = probabilities.reshape(sets, num_groups, per_group)  # (S, G, n) <- (S, E)
    tokens = counts.sum(-1, keepdims=True)  # (S, G, 1)
    products = counts * probabilities / ops.maximum(tokens, _TINY)
    return products.sum() * per_group / ops.maximum(tokens.sum(), _TINY)


def topology_loss(counts: Tensor, probabilities: Tensor, shares: Tensor, num_groups: int) -> Tensor:
    """`sum_i f_i P_i / c_i` (the topology loss of TA-MoE, arXiv 2302.09915), averaged over the tokens of all
    statistics groups and expert groups.

    With f = P it is smallest, and 1, where the distribution of assignments is the target c: by Cauchy-Schwarz
    `sum f_i^2 / c_i >= (sum f_i)^2 / sum c_i`. The paper normalises its penalties 1/c_i without saying how; this scale
    makes equal targets the load-balancing loss itself.

    Args:
        counts, probabilities, num_groups: as of `load_balancing_loss`.
        shares: <float32>[S, E], c: of the tokens of a statistics group and an expert group, the share meant for each
            expert; above 0, sum 1 an expert group.

    Returns: <float32> scalar.
    """
    return load_balancing_loss(counts, probabilities / (shares * (counts.shape[1] // num_groups)), num_groups)


def divergence_loss(probabilities: Tensor) -> Tensor:
    """`H(domain) - JSD`, in nats: how far the domains' experts are from being different ones (after Expert Divergence
    Learning, arXiv 2603.00054), averaged over the tokens of all statistics groups.

    JSD is the generalised Jensen-Shannon divergence between the domains' mean probabilities, each weighted by its
    domain's share of the tokens. It is at most the entropy H of these shares, which no router changes. The difference
    is the entropy of a token's domain given its expert, and is computed as that: 0 where no two domains share an
    expert, H where all domains use experts alike.

    Args:
        probabilities: <float32>[S, D, E], sum over a domain's tokens of each expert's probability.

    Returns: <float32> scalar.
    """
    of_all = probabilities.sum(1, keepdims=True)  # (S, 1, E)
    surprise = log(ops.maximum(of_all, _TINY)) - log(ops.maximum(probabilities, _TINY))
    tokens = ops.stop_gradient(probabilities.sum())  # probabilities of a token sum to 1
    return (probabilities * surprise).sum() / ops.maximum(tokens, _TINY)


def locality_loss(probabilities: Tensor, local: Tensor, num_groups: int, smoothing: float) -> Tensor:
    """`KL(D_c || D_l)` in nats (LocMoE Eq. 6), averaged over the tokens of all nodes and groups.

    D_c, the current distribution, is estimated by the mean probability of a node's tokens over the experts of their
    group. D_l, the localised one, gives `1 - smoothing` to the group's experts on that node in equal parts, and
    `smoothing` to all of the group's experts in equal parts (the paper leaves both open; without smoothing the
    divergence is infinite as soon as one token may leave). Where a node has none of the group's experts, D_l is
    uniform.

    Args:
        probabilities: <float32>[V, E], sum over each node's tokens of each expert's probability.
        local: <float32>[V, E], 1 where the expert is on the node.
        num_groups: G. smoothing: in (0, 1].

    Returns: <float32> scalar.
    """
    nodes, experts = probabilities.shape
    shape = (nodes, num_groups, experts // num_groups)
    current = probabilities.reshape(shape)  # (V, G, n) <- (V, E)
    tokens = ops.stop_gradient(current.sum(-1, keepdims=True))  # (V, G, 1): probabilities of a token sum to 1
    current = current / ops.maximum(tokens, _TINY)
    local = local.reshape(shape)  # (V, G, n) <- (V, E)
    held = local.sum(-1, keepdims=True)
    uniform = 1.0 / shape[-1]
    localised = ops.select(held > 0, local / ops.maximum(held, 1.0), ops.full_like(local, uniform))
    localised = localised * (1.0 - smoothing) + uniform * smoothing
    divergence = current * (log(ops.maximum(current, _TINY)) - log(localised))
    return (divergence * tokens).sum() / ops.maximum(tokens.sum(), _TINY)
