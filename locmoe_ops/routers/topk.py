"""The top-k router of today: DeepSeek-V3's (arXiv 2412.19437), and what others make of it by keys.

Shape legend: T tokens of this rank, d hidden size, k choices, E experts, G groups, n = E / G, Q sequences, L tokens of
each.
"""

from typing import Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes
from locmoe_ops.routers.base import (
    Router,
    RouterContext,
    RouterTokens,
    RoutingShape,
    RoutingStatistics,
    one_hot,
    spread_over_groups,
)
from locmoe_ops.routers.gated import GatedRouter
from locmoe_ops.routers.gates import DenseGate, GateScores
from locmoe_ops.routers.losses import load_balancing_loss, squared_log_partition
from locmoe_ops.routers.specs.topk import TopKOptions

OUT_OF_PLAY = 1e4  # lowers a score, or a sum of a few of them, below all others
_TINY = 1e-20  # keeps a quotient finite where all scores of a token vanish, as Megatron-Core has it


class TopKRouter(GatedRouter):
    """Top-k by scores that a bias may move, with weights that it does not (DeepSeek-V3, arXiv 2412.19437, Eq. 12-16).

    1. Values v_i = e_i x in float32, by a learned gate.
    2. Scores s_i, by `score_function`: softmax of v over the token's group (DeepSeek-V2, Switch); sigmoid(v_i)
       (DeepSeek-V3, Eq. 15); sqrt(log(1 + exp(v_i))) (DeepSeek-V4).
    3. The k largest of s_i + b_i (Eq. 16), b the selection biases if there are any; of equal ones the lower index.
    4. Weights: s_i of the chosen, with `normalise_weights` divided by their sum (Eq. 13), times `weight_scale`. The
       bias plays no part in them.
    5. Losses of the shares p_i = s_i / sum_j s_j, which are the scores themselves with softmax:
       - load balancing over the tokens of `context.statistics` (`losses.load_balancing_loss`), where the counts are of
         the experts as chosen; over an expert-parallel group it is Pangu Ultra MoE's (arXiv 2505.04519);
       - the same within each sequence, averaged over tokens (DeepSeek-V3, Eq. 17-20): here the counts are of the k
         largest s_i, whatever bias or limit decided in step 3;
       - z-loss, the mean over all tokens of (log sum_i exp v_i)^2 (ST-MoE, arXiv 2202.08906, Eq. 5).

    Args:
        context: of the router; its `sequence_length` is that of the second loss. options: its keys.
    """

    def __init__(self, context: RouterContext, options: TopKOptions) -> None:
        super().__init__(context, DenseGate(context.shape))
        self.out_of_play = OUT_OF_PLAY  # scores of `sqrt_softplus` have no bound
        self.score_function = options.score_function
        self.gate_scores = GateScores(options.score_function)
        self.normalise_weights, self.weight_scale = options.normalise_weights, options.weight_scale
        self.aux_loss_weight = options.aux_loss_weight
        self.sums = RoutingStatistics(context) if options.aux_loss_weight > 0.0 else nn.Identity()
        self.sequence_loss_weight, self.z_loss_weight = options.sequence_loss_weight, options.z_loss_weight
        self.sums_losses = self.sequence_loss_weight > 0.0 or self.z_loss_weight > 0.0
        self.sequence_length = context.sequence_length
        self.ranks = context.collectives.topology.data
        self.reduce = nn.Identity()
        if self.sums_losses:
            sum_over_ranks = context.collectives.all_reduce("dp", f"{context.tag}/statistics of losses")
            self.reduce = LossOverRanks(sum_over_ranks, self.ranks)

    def offer_second(self, second: nn.Cell) -> None:
        """Raises InputError: there is no place for `second`."""
        raise InputError(
            "the top-k router normalises and scales the weights of its choices together; a second expert for overflow "
            "has no such weight"
        )

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: steps 1 to 4 for `x` and `tokens`, and the shares of step 5."""
        scores = self.selection_scores(x, tokens)
        choice = self.choose(ops.stop_gradient(scores), tokens)
        weight = ops.gather_elements(scores, 1, choice)  # (T, k) <- (T, n)
        if self.normalise_weights:
            weight = weight / (weight.sum(-1, keepdims=True) + _TINY)
        if self.weight_scale != 1.0:
            weight = weight * self.weight_scale
        return choice, weight, self._shares(scores)

    def choose(self, scores: Tensor, tokens: RouterTokens) -> Tensor:
        """The experts within the group that `tokens` go to, <int32>[T, k] <- constant `scores` <float32>[T, n]."""
        choice, _ = self.select_top_k(self.open_scores(scores, tokens), scores, tokens)
        return choice

    def open_scores(self, scores: Tensor, tokens: RouterTokens) -> Tensor:
        """`scores` <float32>[T, n], those of experts that are not open to one of `tokens` lowered by `OUT_OF_PLAY`."""
        return scores

    def selection_scores(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """s of step 2, <float32>[T, n], of `x` and `tokens`."""
        return self.gate_scores(self.values(x, tokens))

    def probabilities(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `GatedRouter.probabilities`: the shares of step 5, of `x` and `tokens`."""
        return self._shares(self.selection_scores(x, tokens))

    def _shares(self, scores: Tensor) -> Tensor:
        return scores if self.score_function == "softmax" else scores / (scores.sum(-1, keepdims=True) + _TINY)

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `Router.losses`, with the same `expert`, `probabilities` and `tokens`: the first loss of step 5."""
        none = Tensor(0.0, dtype.float32)
        if self.aux_loss_weight == 0.0:
            return none, none
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        return load_balancing_loss(counts, sums, self.num_groups) * self.aux_loss_weight, none

    def token_losses(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `Router.token_losses`: the other losses of step 5, of `x` and `tokens`.

        Values and scores are those of `select`, which a compiled graph computes once.
        """
        count = x.shape[0]
        total = Tensor(0.0, dtype.float32)
        if self.sequence_loss_weight > 0.0:
            mean = self._sequence_loss(self.selection_scores(x, tokens), tokens["group"])
            total = total + mean * (self.sequence_loss_weight * count)
        if self.z_loss_weight > 0.0:
            total = total + squared_log_partition(self.values(x, tokens)).sum() * self.z_loss_weight
        return self.reduce(total.reshape(1)).reshape(()) / (count * self.ranks)  # () <- (1,) <- ()

    def _sequence_loss(self, scores: Tensor, group: Tensor) -> Tensor:
        """The mean over this rank's tokens of the load-balancing loss of their sequence, a scalar."""
        rest, chosen = ops.stop_gradient(scores), ops.zeros_like(scores)
        for _ in range(self.top_k):
            best = one_hot(self.argmax(rest), self.per_group)
            chosen, rest = chosen + best, rest - best * self.out_of_play
        counts, shares = chosen / self.top_k, self._shares(scores)
        if self.num_groups > 1:
            counts = spread_over_groups(counts, group, self.num_groups)
            shares = spread_over_groups(shares, group, self.num_groups)
        length = self.sequence_length
        if length is None or scores.shape[0] % length:  # decoding, where nobody reads a loss
            length = scores.shape[0]
        counts = counts.reshape(-1, length, self.num_experts).sum(1)  # (Q, E) <- (Q, L, E) <- (T, E)
        shares = shares.reshape(-1, length, self.num_experts).sum(1)  # (Q, E) <- (Q, L, E) <- (T, E)
        return load_balancing_loss(counts, shares, self.num_groups)


class LossOverRanks(nn.Cell):
    """A loss of each rank's own tokens, summed over ranks without an exchange in the backward pass.

    The adjoint of the sum adds up what reaches it on all ranks. That is a loss's weight and scale, the same on each of
    them and in every layer, so that it is a multiple of the rank's own.

    Args:
        reduce: all-reduce of the ranks. ranks: how many there are.

    Inputs: loss <float32>[1], of this rank's tokens. Output: <float32>[1], of all ranks'.
    """

    def __init__(self, reduce: nn.Cell, ranks: int) -> None:
        super().__init__()
        self.reduce, self.ranks = reduce, ranks

    def construct(self, loss: Tensor) -> Tensor:
        return self.reduce(loss)

    def bprop(self, loss: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor]:
        """The gradient of `loss` from that of `out`, `dout`."""
        return (dout * float(self.ranks),)


def sizes_of(shape: RoutingShape) -> RouterSizes:
    """What declarations are told of the `shape` of a router that is built."""
    return RouterSizes(shape.hidden_size, shape.num_experts, shape.num_groups, shape.top_k)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return TopKRouter(context, context.options)
