"""Routers that choose by a gate's probabilities: Switch and LocMoE."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.random import SeededUniform
from locmoe_ops.routers.base import Router, RoutingShape, SegmentSums, local_experts_of_nodes, one_hot, segment_count
from locmoe_ops.routers.gates import CodeGate, DenseGate, GrAPGate
from locmoe_ops.routers.losses import load_balancing_loss, locality_loss
from locmoe_ops.routers.preference import Preference
from locmoe_ops.topology import ExpertPlacement, Topology

_SMALL = 1e-12  # a word vector of zeros has no direction


class GatedRouter(Router):
    """Top-k of softmax(scores) within the token's group; the weight is the probability itself, not renormalised.

    1. Gate values in float32, whatever the model computes in.
    2. `score` (subclasses): what enters the softmax.
    3. The k largest probabilities, or what a preference makes of them; of equal ones the expert with the lower index.

    Args:
        preference: terms on the scores that experts are picked by (`LocalTerm`, `BalanceBias`); None: there are none.
    """

    def __init__(self, shape: RoutingShape, gate: nn.Cell, preference: Optional[Preference] = None) -> None:
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
        """The k best by `scores` <float32>[T, n], constants in [0, 3] -> choice <int32>[T, k], and the probabilities of the
        chosen as weight <float32>[T, k].
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


class SwitchRouter(GatedRouter):
    """Switch Transformers' router (arXiv 2101.03961): learned gate, input jitter in training, load-balancing loss.

    Args:
        aux_loss_weight: alpha. statistics: segment of the loss's f and P (see `SegmentSums`).
        jitter: the gate's input is multiplied by uniform(1 - jitter, 1 + jitter) in training.
        salt: tells the jitter of layers apart. preference: see `GatedRouter`.
    """

    def __init__(self, shape: RoutingShape, layout: Topology, collectives: Collectives, tag: str, statistics: str = "global",
                 aux_loss_weight: float = 0.01, jitter: float = 0.0, salt: int = 0,
                 preference: Optional[Preference] = None) -> None:
        super().__init__(shape, DenseGate(shape.num_experts, shape.num_groups, shape.hidden_size), preference)
        self.aux_loss_weight = aux_loss_weight
        self.jitter = jitter
        self.uniform = SeededUniform(shape.hidden_size, salt) if jitter > 0.0 else nn.Identity()
        self.sums = SegmentSums(shape, statistics, layout, collectives, tag)

    def prepare(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        x = ops.cast(x, dtype.float32)
        if self.jitter == 0.0 or not self.training:
            return x
        return x * (1.0 + self.jitter * (2.0 * self.uniform(tokens["seed"]) - 1.0))

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        return load_balancing_loss(counts, sums, self.num_groups) * self.aux_loss_weight, Tensor(0.0, dtype.float32)


@dataclass(frozen=True)
class LossWeights:
    """alpha of the load-balancing loss, mu of the locality loss and its smoothing (see `losses.locality_loss`)."""

    aux: float = 0.01
    locality: float = 0.01
    smoothing: float = 0.1


class LocalisingRouter(GatedRouter):
    """A gated router with both of LocMoE's losses (arXiv 2401.13920, Eq. 5-7): load balancing and locality.

    Args:
        layout, placement: the cluster and the experts' places in it that locality refers to. The locality loss always takes its
            distributions over the tokens of one home node.
        statistics: segment of the load-balancing loss's f and P.
        weights: of the losses. preference: see `GatedRouter`.
    """

    def __init__(self, shape: RoutingShape, gate: nn.Cell, layout: Topology, placement: ExpertPlacement, collectives: Collectives,
                 tag: str, statistics: str, weights: LossWeights, preference: Optional[Preference] = None) -> None:
        super().__init__(shape, gate, preference)
        self.aux_loss_weight = weights.aux
        self.locality_loss_weight = weights.locality
        self.smoothing = weights.smoothing
        self.nodes = layout.nodes
        self.segments = segment_count(statistics, layout)
        # One reduction serves both losses: sums over the finer of the two segments add up to those over the coarser.
        self.sums = SegmentSums(shape, "rank" if statistics == "rank" else "node", layout, collectives, tag)
        self.local = Tensor(local_experts_of_nodes(layout, placement))

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        aux = load_balancing_loss(self._coarser(counts, self.segments), self._coarser(sums, self.segments), self.num_groups)
        locality = locality_loss(self._coarser(sums, self.nodes), self.local, self.num_groups, self.smoothing)
        return aux * self.aux_loss_weight, locality * self.locality_loss_weight

    def _coarser(self, sums: Tensor, segments: int) -> Tensor:
        return sums.reshape(segments, -1, self.num_experts).sum(1)


@dataclass(frozen=True)
class Ties:
    """What LocMoE's router does with undecided tokens: those with fewer than k gate values above 0 (k is `top_k`). Eq. 2's ReLU makes
    their other values 0, so that at least one of their choices is a tie.

    `first`: the tie goes to the expert of lowest index. A token without any value above 0 has the weight 1/n, and neither its output
    nor a loss has a gradient with respect to its values.
    `unrectified` (ours): an undecided token is routed as if Eq. 2 had no ReLU. Choice, weight and losses come from the softmax of its
    values as they are, and gradients flow through all of them.
    `noise`: in training eps_i is added to value i before the ReLU, as in Eq. 2, and ties that remain go to the lowest index. The paper
    does not give the distribution of eps_i. Here it is uniform in [-noise_scale, noise_scale), our choice. It is a function of the token's
    seed, the layer and i, so it is the same at any parallel degree. In evaluation it is 0.

    Attributes:
        rule: `first`, `unrectified` or `noise`. noise_scale: for `noise`. salt: tells the noise of layers apart.
    """

    rule: str = "first"
    noise_scale: float = 0.0
    salt: int = 0


class LocMoERouter(LocalisingRouter):
    """LocMoE's router (arXiv 2401.13920, Eq. 1-7): softmax of ReLU'd gate values, load-balancing and locality losses.

    Args:
        ties: what decides where the ReLU leaves several values equal to 0.
        gate: `grap`, fixed orthogonal weights (Eq. 4), or `dense`, learned ones.
        gate_input: `hidden`, the layer's input as in the paper; `word`: the token's word vector <float>[T, d], which `tokens` then
            holds as `word`, brought to mean 0 and variance 1 (ours); `code`: a fixed code of the token's id (ours, see `CodeGate`).
        codes: <float32>[G, V, n], for `code`.
        order: of the features in a GrAP gate's blocks, see `GrAPGate` (ours).
        locality_loss_weight: mu. locality_smoothing: see `losses.locality_loss`. The others: see `LocalisingRouter`.
    """

    def __init__(self, shape: RoutingShape, layout: Topology, placement: ExpertPlacement, collectives: Collectives, tag: str,
                 gate: str = "grap", statistics: str = "global", aux_loss_weight: float = 0.01,
                 locality_loss_weight: float = 0.01, locality_smoothing: float = 0.1,
                 preference: Optional[Preference] = None, gate_input: str = "hidden", order: Optional[np.ndarray] = None,
                 codes: Optional[np.ndarray] = None, ties: Ties = Ties()) -> None:
        sizes = (shape.num_experts, shape.num_groups, shape.hidden_size)
        fixed = GrAPGate(*sizes, order) if codes is None else CodeGate(codes)
        super().__init__(shape, fixed if gate == "grap" else DenseGate(*sizes), layout, placement, collectives, tag, statistics,
                         LossWeights(aux_loss_weight, locality_loss_weight, locality_smoothing), preference)
        self.by_word, self.by_code = gate_input == "word", gate_input == "code"
        self.counts_undecided = True
        self.unrectified, self.noisy, self.noise_scale = ties.rule == "unrectified", ties.rule == "noise", ties.noise_scale
        self.uniform = SeededUniform(shape.per_group, ties.salt) if self.noisy else nn.Identity()

    def values(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        values = self.noiseless_values(x, tokens)
        if not self.noisy or not self.training:
            return values
        return values + self.noise_scale * (2.0 * self.uniform(tokens["seed"]) - 1.0)  # eps_i of Eq. 2

    def noiseless_values(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        """w_i x of Eq. 2: <float32>[T, n] <- <float>[T, d]"""
        if self.by_code:
            return self.gate(tokens["ids"], tokens["group"])
        return self.gate(self.prepare(x, tokens), one_hot(tokens["group"], self.num_groups))

    def prepare(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        if not self.by_word:
            return ops.cast(x, dtype.float32)
        word = ops.cast(tokens["word"], dtype.float32)
        word = word - word.mean(-1, keep_dims=True)
        return word * ops.rsqrt((word * word).mean(-1, keep_dims=True) + _SMALL)

    def seen(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        if self.by_code:
            return self.noiseless_values(x, tokens)
        return self.prepare(x, tokens) if self.by_word else x

    def undecided(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        # The same product as in `choose`, which a compiled graph computes once.
        return ops.cast(self._undecided(ops.stop_gradient(self.values(x, tokens))), dtype.float32).reshape(-1)

    def score(self, values: Tensor) -> Tensor:
        rectified = ops.relu(values)  # Eq. 2
        return ops.select(self._undecided(values), values, rectified) if self.unrectified else rectified

    def _undecided(self, values: Tensor) -> Tensor:
        """bool[T, 1] <- <float32>[T, n]"""
        return ops.cast(values > 0.0, dtype.float32).sum(-1, keepdims=True) < self.top_k
