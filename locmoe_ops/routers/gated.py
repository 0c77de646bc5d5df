"""Routers that choose by a gate's probabilities (`GatedRouter`), and those with LocMoE's losses (`LocalisingRouter`).

Shape legend: T tokens of this rank, d hidden size, k choices, E experts, G groups, n = E / G, S statistics groups,
V nodes.
"""

from dataclasses import dataclass, replace
from typing import Tuple, Union

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import (
    DomainStatistics,
    Router,
    RouterContext,
    RouterTokens,
    RoutingStatistics,
    count_statistics_groups,
    local_experts_of_nodes,
    one_hot,
    statistics_by_node,
)
from locmoe_ops.routers.losses import (
    ClosedLosses,
    coarser,
    divergence_loss,
    load_balancing_loss,
    locality_loss,
    log_localised,
)

LOCALITY_LOSS_WEIGHT = "locality_loss_weight"  # of the parameter that holds mu where it has a schedule


class GatedRouter(Router):
    """Top-k of softmax(scores) within the token's group; the weight is the probability itself, not renormalised.

    1. Gate values in float32, whatever the model computes in.
    2. `score` (subclasses): what enters the softmax.
    3. The k largest probabilities, or what a selection bias makes of them; of equal ones the expert with the lower
       index.

    Args:
        context: of the router.
        gate: a Cell from x <float32>[T, d] and the one-hot group <float32>[T, G] to values <float32>[T, n].
    """

    def __init__(self, context: RouterContext, gate: nn.Cell) -> None:
        super().__init__(context.shape)
        self.gate = gate
        self.softmax = ops.Softmax(-1)
        self.argmax = ops.Argmax(-1, dtype.int32)
        self.out_of_play = 4.0  # below every score: what a chosen expert's is lowered by
        self.has_selection_bias = context.selection_bias is not None
        # Checkpoints know the parameters of a selection bias by the name of this attribute.
        self.preference: nn.Cell = context.selection_bias if self.has_selection_bias else nn.Identity()
        self.required_bins = getattr(context.selection_bias, "bins", 0)

    def offer_second(self, second: nn.Cell) -> None:
        """See `Router.offer_second`; `second` needs probabilities, which a gated router has."""
        self.offers_second = True
        self.second = second

    def score(self, values: Tensor) -> Tensor:
        """Gate `values` <float32>[T, n] -> scores <float32>[T, n]."""
        return values

    def prepare(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """What the gate is given: <float32>[T, d] <- `x` <float>[T, d], `tokens`."""
        return ops.cast(x, dtype.float32)

    def probabilities(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """<float32>[T, n] <- `x` <float>[T, d], `tokens`."""
        return self.softmax(self.score(self.values(x, tokens)))

    def selection_scores(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """What biases on selection are added to, <float32>[T, n], of `x` and `tokens`."""
        return self.probabilities(x, tokens)

    def required(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `Router.required`, with the same `x` and `tokens`."""
        # The same scores as in `select`, which a compiled graph computes once.
        scores = self.biased_scores(ops.stop_gradient(self.selection_scores(x, tokens)), tokens)
        counts: Tensor = self.preference.required(scores, tokens["group"])
        return counts

    def values(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """The gate's values <float32>[T, n] <- `x` <float>[T, d], `tokens`."""
        return self.gate(self.prepare(x, tokens), one_hot(tokens["group"], self.num_groups))

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: the k best by probability for `x` and `tokens`."""
        probabilities = self.probabilities(x, tokens)
        choice, weight = self.select_top_k(ops.stop_gradient(probabilities), probabilities, tokens)
        return choice, weight, probabilities

    def select_top_k(self, scores: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """The k best by score, one after another.

        Args:
            scores: <float32>[T, n], constants in [0, 3].
            probabilities: <float32>[T, n], of which the weights are taken.
            tokens: as given to the router.

        Returns: choice <int32>[T, k], and the probabilities of the chosen as weight <float32>[T, k].
        """
        choices, weights = [], []
        rest = scores
        for _ in range(self.top_k):
            choice = self.argmax(self.biased_scores(rest, tokens))
            choices.append(choice.reshape(-1, 1))  # (T, 1) <- (T,)
            weights.append(ops.gather_elements(probabilities, 1, choices[-1]))  # (T, 1) <- (T, n)
            rest = rest - one_hot(choice, self.per_group) * self.out_of_play  # never chosen again
        if self.top_k == 1:
            return choices[0], weights[0]
        return ops.concat(choices, 1), ops.concat(weights, 1)  # (T, k) <- k * (T, 1)

    def biased_scores(self, rest: Tensor, tokens: RouterTokens) -> Tensor:
        """What the next expert of `tokens` is selected by, <float32>[T, n] <- the scores `rest` that are left."""
        if not self.has_selection_bias:
            return rest
        return self.preference(rest, tokens["home"], tokens["group"])


@dataclass(frozen=True)
class LossWeights:
    """Of LocMoE's losses.

    Attributes:
        aux: alpha of the load-balancing loss. locality: mu of the locality loss.
        smoothing: of the locality loss's targets (see `losses.locality_loss`).
        divergence: of the divergence loss over domains (ours, after arXiv 2603.00054).
    """

    aux: float = 0.01
    locality: float = 0.01
    smoothing: float = 0.1
    divergence: float = 0.0


class LocalisingRouter(GatedRouter):
    """A gated router with both of LocMoE's losses (arXiv 2401.13920, Eq. 5-7): load balancing and locality.

    The load-balancing loss takes its means as `context.statistics` says. The locality loss always takes its
    distributions over the tokens of one home node. A divergence loss over domains, where it has a weight, takes its
    means as the load-balancing loss does and is added to it; the router then needs the tokens' `domain`.

    Args:
        context: of the router. gate: see `GatedRouter`. weights: of the losses.
    """

    def __init__(self, context: RouterContext, gate: nn.Cell, weights: LossWeights) -> None:
        super().__init__(context, gate)
        self.aux_loss_weight = weights.aux
        # A parameter where it changes from step to step, which then needs no other graph.
        self.locality_loss_weight: Union[float, Parameter] = weights.locality
        if context.locality_loss_changes:
            self.locality_loss_weight = Parameter(
                Tensor(weights.locality, dtype.float32), name=LOCALITY_LOSS_WEIGHT, requires_grad=False
            )
        self.smoothing = weights.smoothing
        self.divergence_loss_weight, self.has_divergence = weights.divergence, weights.divergence > 0.0
        self.sums_of_domains = DomainStatistics(context) if self.has_divergence else nn.Identity()
        self.nodes = context.layout.nodes
        self.statistics_groups = count_statistics_groups(context.statistics, context.layout)
        # One reduction serves both losses: sums over the finer of the two divisions add up to those over the coarser.
        finer = statistics_by_node(context.statistics, context.layout)
        self.sums = RoutingStatistics(replace(context, statistics=finer))
        local = Tensor(local_experts_of_nodes(context.layout, context.placement))
        # Once, and not in every micro-batch: no graph knows that a result of constants is one.
        self.log_localised = log_localised(local, self.num_groups, self.smoothing)
        self.in_closed_form = context.kernels.few_operators
        self.weight_is_set = context.locality_loss_changes
        fixed = 1.0 if self.weight_is_set else weights.locality
        self.both_losses = (
            ClosedLosses(self.statistics_groups, self.log_localised, weights.aux, fixed)
            if self.in_closed_form
            else nn.Identity()
        )

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `Router.losses`, with the same `expert`, `probabilities` and `tokens`."""
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        if self.in_closed_form:
            aux, locality, _, _ = self.both_losses(counts, sums)
            locality = locality * self.locality_loss_weight if self.weight_is_set else locality
            return self._with_divergence(aux, probabilities, tokens), locality
        aux = load_balancing_loss(
            coarser(counts, self.statistics_groups), coarser(sums, self.statistics_groups), self.num_groups
        )
        locality = locality_loss(coarser(sums, self.nodes), self.log_localised)
        aux = self._with_divergence(aux * self.aux_loss_weight, probabilities, tokens)
        return aux, locality * self.locality_loss_weight

    def _with_divergence(self, aux: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tensor:
        """The auxiliary loss <float32>, and with it the divergence loss, where it has a weight."""
        if not self.has_divergence:
            return aux
        sums = self.sums_of_domains(probabilities, tokens["domain"], tokens["home"])
        return aux + divergence_loss(sums) * self.divergence_loss_weight


def set_locality_loss_weight(network: nn.Cell, value: float) -> None:
    """Gives the locality losses of all routers in `network` the weight `value`. Compiled graphs stay valid.

    Raises InputError where no router has one that can be set (`RouterContext.locality_loss_changes`).
    """
    routers = [cell for _, cell in network.cells_and_names() if isinstance(cell, LocalisingRouter)]
    weights = [one.locality_loss_weight for one in routers if isinstance(one.locality_loss_weight, Parameter)]
    if not weights:
        raise InputError(
            "moe.router.locality_loss.initial_weight: no router of the network has a locality loss whose weight can be "
            "set; expected null, or a router that is a LocalisingRouter"
        )
    for weight in weights:
        weight.set_data(Tensor(value, dtype.float32))
