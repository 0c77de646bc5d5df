"""Routers that choose by a gate's probabilities: Switch and LocMoE."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.routers.base import (
    Router,
    RoutingShape,
    RoutingStatistics,
    local_experts_of_nodes,
    one_hot,
    segment_count,
)
from locmoe_ops.routers.losses import load_balancing_loss, locality_loss
from locmoe_ops.routers.selection_bias import SelectionBias
from locmoe_ops.topology import ExpertPlacement, Topology

_SMALL = 1e-12  # a word vector of zeros has no direction


class GatedRouter(Router):
    """Top-k of softmax(scores) within the token's group; the weight is the probability itself, not renormalised.

    1. Gate values in float32, whatever the model computes in.
    2. `score` (subclasses): what enters the softmax.
    3. The k largest probabilities, or what a preference makes of them; of equal ones the expert with the lower index.

    Args:
        preference: terms on the scores that experts are picked by (`LocalityBias`, `BalanceBias`); None: there are
            none.
    """

    def __init__(self, shape: RoutingShape, gate: nn.Cell, preference: Optional[SelectionBias] = None) -> None:
        super().__init__(shape)
        self.gate = gate
        self.softmax = ops.Softmax(-1)
        self.has_preference = preference is not None
        self.preference = nn.Identity() if preference is None else preference

    def offer_second(self, second: nn.Cell) -> None:
        self.offers_second = True
        self.second = second

    def score(self, values: Tensor) -> Tensor:
        """Gate values <float32>[T, n] -> scores <float32>[T, n]."""
        return values

    def prepare(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        """What the gate sees: <float32>[T, d] <- <float>[T, d]."""
        return ops.cast(x, dtype.float32)

    def probabilities(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        """<float32>[T, n] <- <float>[T, d]"""
        return self.softmax(self.score(self.values(x, tokens)))

    def values(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        """The gate's values <float32>[T, n] <- <float>[T, d]"""
        return self.gate(self.prepare(x, tokens), one_hot(tokens["group"], self.num_groups))

    def choose(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        probabilities = self.probabilities(x, tokens)
        choice, weight = self.pick(ops.stop_gradient(probabilities), probabilities, tokens)
        return choice, weight, probabilities

    def pick(self, scores: Tensor, probabilities: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        """The k best by `scores` <float32>[T, n], constants in [0, 3] -> choice <int32>[T, k], and the probabilities of
        the chosen as weight <float32>[T, k].
        """
        choices, weights = [], []
        rest = scores
        for _ in range(self.top_k):
            choice = ops.cast(ops.argmax(self.preferred(rest, tokens), -1), dtype.int32)
            chosen = one_hot(choice, self.per_group)
            choices.append(choice.reshape(-1, 1))
            weights.append((probabilities * chosen).sum(-1, keepdims=True))
            rest = rest - chosen * 4.0  # below every score: never chosen again
        if self.top_k == 1:
            return choices[0], weights[0]
        return ops.concat(choices, 1), ops.concat(weights, 1)

    def preferred(self, rest: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        """What is left to pick from <float32>[T, n] -> what the next pick is made by."""
        if not self.has_preference:
            return rest
        return self.preference(rest, tokens["home"], tokens["group"])


@dataclass(frozen=True)
class LossWeights:
    """alpha of the load-balancing loss, mu of the locality loss and its smoothing (see `losses.locality_loss`)."""

    aux: float = 0.01
    locality: float = 0.01
    smoothing: float = 0.1


class LocalisingRouter(GatedRouter):
    """A gated router with both of LocMoE's losses (arXiv 2401.13920, Eq. 5-7): load balancing and locality.

    Args:
        layout, placement: the cluster and the experts' places in it that locality refers to. The locality loss always
            takes its distributions over the tokens of one home node.
        statistics: segment of the load-balancing loss's f and P.
        weights: of the losses. preference: see `GatedRouter`.
    """

    def __init__(
        self,
        shape: RoutingShape,
        gate: nn.Cell,
        layout: Topology,
        placement: ExpertPlacement,
        collectives: Collectives,
        tag: str,
        statistics: str,
        weights: LossWeights,
        preference: Optional[SelectionBias] = None,
    ) -> None:
        super().__init__(shape, gate, preference)
        self.aux_loss_weight = weights.aux
        self.locality_loss_weight = weights.locality
        self.smoothing = weights.smoothing
        self.nodes = layout.nodes
        self.segments = segment_count(statistics, layout)
        # One reduction serves both losses: sums over the finer of the two segments add up to those over the coarser.
        self.sums = RoutingStatistics(shape, "rank" if statistics == "rank" else "node", layout, collectives, tag)
        self.local = Tensor(local_experts_of_nodes(layout, placement))

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        aux = load_balancing_loss(
            self._coarser(counts, self.segments), self._coarser(sums, self.segments), self.num_groups
        )
        locality = locality_loss(self._coarser(sums, self.nodes), self.local, self.num_groups, self.smoothing)
        return aux * self.aux_loss_weight, locality * self.locality_loss_weight

    def _coarser(self, sums: Tensor, segments: int) -> Tensor:
        return sums.reshape(segments, -1, self.num_experts).sum(1)
