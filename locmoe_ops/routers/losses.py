"""Router losses as pure functions of summed statistics. They return numbers that are the same on every rank.

Shape legend: S statistics groups (sets of tokens over which sums are taken), V nodes, D domains, G groups,
E experts, n = E / G.
Sums over ranks are taken by the caller, so the functions mean the same at any parallel degree.
"""

from typing import Tuple

from mindspore import Tensor, nn, ops

from locmoe_ops.functions import log

_TINY = 1e-30  # keeps logarithms and quotients finite; far below any probability that matters in float32


def coarser(sums: Tensor, sets: int) -> Tensor:
    """<float32>[sets, E] <- `sums` <float32>[finer, E]: each of `sets` is as many neighbours of the finer ones."""
    if sums.shape[0] == sets:
        return sums
    return sums.reshape(sets, -1, sums.shape[1]).sum(1)  # (sets, E) <- (sets, finer in each, E) <- (finer, E)


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


def squared_log_partition(values: Tensor) -> Tensor:
    """(log sum_i exp v_i)^2 of each token: <float32>[T] <- gate `values` <float32>[T, n]. Its mean is the router z-loss
    of ST-MoE (arXiv 2202.08906, Eq. 5).
    """
    largest = ops.stop_gradient(values.max(-1, keepdims=True))  # (T, 1); what it is plays no part in the gradient
    partition = log(ops.exp(values - largest).sum(-1, keepdims=True)) + largest
    return (partition * partition).reshape(-1)  # (T,) <- (T, 1)


def log_localised(local: Tensor, num_groups: int, smoothing: float) -> Tensor:
    """log D_l of the locality loss, which no training changes: <float32>[V, G, n].

    D_l, the localised distribution, gives `1 - smoothing` to the group's experts on a node in equal parts, and
    `smoothing` to all of the group's experts in equal parts (the paper leaves both open; without smoothing the
    divergence is infinite as soon as one token may leave). Where a node has none of the group's experts, D_l is
    uniform.

    Args:
        local: <float32>[V, E], 1 where the expert is on the node.
        num_groups: G. smoothing: in (0, 1].
    """
    nodes, experts = local.shape
    local = local.reshape(nodes, num_groups, experts // num_groups)  # (V, G, n) <- (V, E)
    held = local.sum(-1, keepdims=True)
    uniform = num_groups / experts
    localised = ops.select(held > 0, local / ops.maximum(held, 1.0), ops.full_like(local, uniform))
    return log(localised * (1.0 - smoothing) + uniform * smoothing)


def locality_loss(probabilities: Tensor, log_localised: Tensor) -> Tensor:
    """`KL(D_c || D_l)` in nats (LocMoE Eq. 6), averaged over the tokens of all nodes and groups.

    D_c, the current distribution, is estimated by the mean probability of a node's tokens over the experts of their
    group.

    Args:
        probabilities: <float32>[V, E], sum over each node's tokens of each expert's probability.
        log_localised: <float32>[V, G, n], see the function of that name.

    Returns: <float32> scalar.
    """
    current = probabilities.reshape(log_localised.shape)  # (V, G, n) <- (V, E)
    tokens = ops.stop_gradient(current.sum(-1, keepdims=True))  # (V, G, 1): probabilities of a token sum to 1
    current = current / ops.maximum(tokens, _TINY)
    divergence = current * (log(ops.maximum(current, _TINY)) - log_localised)
    return (divergence * tokens).sum() / ops.maximum(tokens.sum(), _TINY)


class ClosedLosses(nn.Cell):
    """`load_balancing_loss` and `locality_loss` together, with their gradient in closed form: a third of the operators
    that the two functions and their derivatives take.

    The load-balancing loss is linear in the probabilities, with slope f_i n / tokens. The locality loss has the slope
    (log D_c - log D_l + 1) / tokens, as its own sums of tokens count as constants; the 1 is left out, for what is the
    same for all experts of a group does not pass a softmax over them. Both are averaged over the number of assignments
    divided by top_k, which is the number of tokens.

    Args:
        sets: S, statistics groups of the load-balancing loss.
        log_localised: <float32>[V, G, n], see the function of that name.
        aux_weight, locality_weight: what the losses, and their slopes, are multiplied by.

    Inputs: counts, sums <float32>[F, E], as the two functions take them, over sets at least as fine as both want them.
    Outputs: both losses, <float32> scalars; their slopes with respect to sums, <float32>[S, E] and <float32>[V, E],
    which pass no gradient on.
    """

    def __init__(self, sets: int, log_localised: Tensor, aux_weight: float = 1.0, locality_weight: float = 1.0) -> None:
        super().__init__()
        self.sets, self.shape, self.log_localised = sets, tuple(log_localised.shape), log_localised
        self.aux_weight, self.locality_weight = aux_weight, locality_weight

    def construct(self, counts: Tensor, sums: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        nodes, groups, per_group = self.shape
        shape = (self.sets, groups, per_group)
        fractions = coarser(counts, self.sets).reshape(shape)  # (S, G, n) <- (S, E)
        tokens = fractions.sum(-1, keepdims=True)  # (S, G, 1)
        some = ops.maximum(tokens, _TINY)
        total = some if self.sets * groups == 1 else ops.maximum(tokens.sum(), _TINY)
        slope = fractions / some * (self.aux_weight * per_group / total)
        slope = slope.reshape(self.sets, 1, -1)  # (S, 1, E) <- (S, G, n)
        aux = (slope * sums.reshape(self.sets, -1, groups * per_group)).sum()  # (S, F / S, E) <- (F, E)
        current = coarser(sums, nodes).reshape(self.shape)  # (V, G, n) <- (V, E)
        shares = current / ops.maximum(current.sum(-1, keepdims=True), _TINY)
        surprise = log(ops.maximum(shares, _TINY)) - self.log_localised
        weight = self.locality_weight / total
        locality = ((current * surprise).sum() * weight).reshape(())  # () <- (1, 1, 1), where one set has one group
        # (S, E) <- (S, 1, E); (V, E) <- (V, G, n)
        return aux, locality, slope.reshape(self.sets, -1), (surprise * weight).reshape(nodes, -1)

    def bprop(
        self, counts: Tensor, sums: Tensor, out: Tuple[Tensor, ...], dout: Tuple[Tensor, ...]
    ) -> Tuple[Tensor, Tensor]:
        """The gradient of `sums` from those of the losses, the first two of `dout`, and the slopes, the last two of
        `out`; zeros for `counts`.
        """
        finer = sums.shape[0]
        of_aux, of_locality = _spread(out[2] * dout[0], finer), _spread(out[3] * dout[1], finer)
        return ops.zeros_like(counts), of_aux + of_locality  # (F, E): one of the two is as fine


def _spread(slopes: Tensor, finer: int) -> Tensor:
    """(finer, E), or (1, E), which stands for as many, <- (sets, E)"""
    sets, experts = slopes.shape
    if sets in (1, finer):
        return slopes
    return ops.tile(slopes.expand_dims(1), (1, finer // sets, 1)).reshape(finer, experts)  # (F, E) <- (sets, F/sets, E)
