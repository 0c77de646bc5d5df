"""LocMoE's router (arXiv 2401.13920).

Shape legend: T tokens of this rank, d hidden size, k choices, G groups, n experts of a group, V vocabulary size.
"""

import math

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.random import SeededUniform
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, one_hot
from locmoe_ops.routers.centring import ValueMean
from locmoe_ops.routers.gated import LocalisingRouter, LossWeights
from locmoe_ops.routers.gates import CodeGate, DenseGate, GrAPGate, draw_codes
from locmoe_ops.routers.hash_maps import experts_of_codes
from locmoe_ops.routers.specs.locmoe import LocMoEOptions

_SMALL = 1e-12  # a word vector of zeros has no direction
_LEAST_VARIANCE = 1e-6  # of a token's values, whose variance is of order n / d: keeps equal values from dividing by 0


class LocMoERouter(LocalisingRouter):
    """LocMoE's router (arXiv 2401.13920, Eq. 1-7): softmax of ReLU'd gate values, load-balancing and locality losses.

    The gate's input is the layer's, as in the paper; or (ours) the token's word vector, which `tokens` then holds as
    `word`, brought to mean 0 and variance 1; or a fixed code of the token's id (`CodeGate`), to which the layer's
    input can be added with a weight that grows in training (ours; see `set_context_weight`).

    1. w_i x, by the gate; of a code with a context, its coordinate i plus the weighted GrAP value i of the context.
       With a `centre_rate` (ours) less its running mean, see `ValueMean`.
    2. `normalise` token (ours): of each token, (value - mean) / deviation over the n experts of its group.
    3. In training eps_i of Eq. 2 is added, where `noise_scale` or `ties` ask for it. The paper does not give its
       distribution. Here it is uniform in [-s, s), our choice, with s the key noise_scale, or else 1 where values are
       normalised and sqrt(n / d) where not. It is a function of the token's seed, the layer and i, so it is the same at
       any parallel degree. In evaluation it is 0.
    4. ReLU, unless `rectify` is false (ours).
    5. Times `value_scale` (ours; 1 as in the paper), then softmax and choice (`GatedRouter`).

    A token is undecided if fewer than k of its values after step 3 are above 0. Eq. 2's ReLU makes its other values 0,
    so that at least one of its choices is a tie. Without the ReLU no token is. `ties` says what is done with it:

    - `first`: the tie goes to the expert of lowest index. A token without any value above 0 has the weight 1/n, and
      neither its output nor a loss has a gradient with respect to its values.
    - `unrectified` (ours): it is routed as if Eq. 2 had no ReLU. Choice, weight and losses come from the softmax of its
      values as they are, and gradients flow through all of them.
    - `noise`: there is noise (step 3), and ties that remain go to the lowest index.

    Args:
        context: of the router. options: its keys.
    """

    def __init__(self, context: RouterContext, options: LocMoEOptions) -> None:
        weights = LossWeights(
            options.aux_loss_weight,
            options.locality_loss_weight,
            options.locality_smoothing,
            options.divergence_loss_weight,
        )
        super().__init__(context, locmoe_gate(context, options), weights)
        self.by_word, self.by_code = options.gate_input == "word", options.gate_input == "code"
        self.needs = (*(("word",) if self.by_word else ()), *(("domain",) if self.has_divergence else ()))
        self.counts_undecided = True
        self.unrectified, self.rectify = options.ties == "unrectified", options.rectify
        self.normalise, self.value_scale = options.normalise == "token", options.value_scale
        self.noisy = options.ties == "noise" or options.noise_scale is not None
        spread = 1.0 if self.normalise else math.sqrt(context.shape.per_group / context.shape.hidden_size)
        self.has_context = options.context_weight > 0.0
        self.context = GrAPGate(context.shape) if self.has_context else nn.Identity()
        # A parameter, for it grows in training without another graph; checkpoints keep it, since routes follow from it.
        self.context_weight = (
            Parameter(Tensor(options.context_weight, dtype.float32), name="context_weight", requires_grad=False)
            if self.has_context
            else 0.0
        )
        self.sums_values = options.centre_rate > 0.0
        self.centre = ValueMean(context.shape) if self.sums_values else nn.Identity()
        self.noise_scale = spread if options.noise_scale is None else options.noise_scale
        self.uniform = SeededUniform(self.per_group, context.rng_stream) if self.noisy else nn.Identity()

    def values(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `GatedRouter.values`: what enters Eq. 2's ReLU, of `x` and `tokens`, in training with noise if any."""
        values = self.raw_values(x, tokens)
        if self.sums_values:
            values = self.centre(values, tokens["group"])
        if self.normalise:
            values = values - values.mean(-1, keep_dims=True)
            values = values * ops.rsqrt((values * values).mean(-1, keep_dims=True) + _LEAST_VARIANCE)
        if not self.noisy or not self.training:
            return values
        return values + self.noise_scale * (2.0 * self.uniform(tokens["seed"]) - 1.0)  # eps_i of Eq. 2

    def value_sums(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `Router.value_sums`, with the same `x` and `tokens`."""
        sums: Tensor = self.centre.sums(self.raw_values(x, tokens), tokens["group"])
        return sums

    def raw_values(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """w_i x of Eq. 2: <float32>[T, n] <- `x` <float>[T, d], `tokens`."""
        if self.by_code:
            codes: Tensor = self.gate(tokens["ids"], tokens["group"])
            if not self.has_context:
                return codes
            group_mask = one_hot(tokens["group"], self.num_groups)
            return codes + self.context_weight * self.context(ops.cast(x, dtype.float32), group_mask)
        return self.gate(self.prepare(x, tokens), one_hot(tokens["group"], self.num_groups))

    def prepare(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `GatedRouter.prepare`: `x`, or the standardised words of `tokens`."""
        if not self.by_word:
            return ops.cast(x, dtype.float32)
        word = ops.cast(tokens["word"], dtype.float32)
        word = word - word.mean(-1, keep_dims=True)
        return word * ops.rsqrt((word * word).mean(-1, keep_dims=True) + _SMALL)

    def expert_by_id(self) -> np.ndarray:
        """See `Router.expert_by_id`: of codes, those of the k largest coordinates; of equal ones, the first."""
        return experts_of_codes(self.gate.codes.asnumpy(), self.top_k)

    def gate_input(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `Router.gate_input`: codes, words or `x`, as the gate takes them of `tokens`."""
        if self.by_code:
            return self.raw_values(x, tokens)
        return self.prepare(x, tokens) if self.by_word else x

    def undecided(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `Router.undecided`, with the same `x` and `tokens`."""
        if not self.rectify:
            return ops.zeros_like(ops.cast(tokens["seed"], dtype.float32))
        # The same product as in `select`, which a compiled graph computes once.
        undecided = self._undecided(ops.stop_gradient(self.values(x, tokens)))
        return ops.cast(undecided, dtype.float32).reshape(-1)  # (T,) <- (T, 1)

    def score(self, values: Tensor) -> Tensor:
        """See `GatedRouter.score`: `values` after Eq. 2's ReLU, but for what is left unrectified, times the scale."""
        scores = values
        if self.rectify:
            scores = ops.relu(values)  # Eq. 2
        if self.unrectified:
            scores = ops.select(self._undecided(values), values, scores)
        return scores if self.value_scale == 1.0 else scores * self.value_scale

    def _undecided(self, values: Tensor) -> Tensor:
        """bool[T, 1] <- <float32>[T, n]"""
        if self.top_k == 1:
            return ops.amax(values, -1, True) <= 0.0
        return ops.cast(values > 0.0, dtype.float32).sum(-1, keepdims=True) < self.top_k


def set_context_weight(network: nn.Cell, value: float) -> None:
    """Gives the contexts beside codes, of all routers in `network` that have one, the weight `value`. Compiled graphs
    stay valid.
    """
    for _, cell in network.cells_and_names():
        if isinstance(cell, LocMoERouter) and isinstance(cell.context_weight, Parameter):
            cell.context_weight.set_data(Tensor(value, dtype.float32))


def locmoe_gate(context: RouterContext, options: LocMoEOptions) -> nn.Cell:
    """The gate that `options` name: learned, of codes, or of means over blocks of features (Eq. 4), the default.

    Codes, and the order of features in blocks `by_layer`, are drawn from the run's seed and the layer of `context`.
    Codes lie nearest to experts in equal shares of the ids, or of the group's text where its counts are known.
    """
    shape, seed = context.shape, (context.seed, context.layer)
    if options.gate == "dense":
        return DenseGate(shape)
    if options.gate_input == "code":
        winners = context.hash_tables("uniform" if context.token_counts is None else "frequency")  # (G, V)
        return CodeGate(draw_codes(winners, shape.per_group, shape.hidden_size, seed))
    if options.blocks == "by_layer":
        return GrAPGate(shape, np.random.default_rng(seed).permutation(shape.hidden_size))
    return GrAPGate(shape)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return LocMoERouter(context, context.options)
