"""Expert-token resonance, the router of LocMoE+ (Li et al., arXiv 2406.00023).

Shape legend: T tokens, d hidden size, k choices, E experts, G groups, n = E / G, W ranks of the layout.
"""

from typing import Any, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, RoutingShape, one_hot
from locmoe_ops.routers.gated import LocalisingRouter, LossWeights
from locmoe_ops.routers.gates import grap_weights
from locmoe_ops.routers.priority import rank_within_sets
from locmoe_ops.routers.specs.etr import ETROptions

_SQUARE = 1e-12  # added to |x|^2: a token of zeros has no direction, and affinity 0 to every expert


class CosineGate(nn.Cell):
    """Affinity: the cosine between a token and an expert's row of GrAP weights, the same for every group. Nothing is
    learned.

    Args:
        shape: sizes.

    Inputs: x <float32>[T, d]; group_mask <float32>[T, G], unused. Output: <float32>[T, n], in [-1, 1].
    """

    def __init__(self, shape: RoutingShape) -> None:
        super().__init__()
        rows = grap_weights(shape.per_group, shape.hidden_size)
        self.weight = Tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor, group_mask: Tensor) -> Tensor:
        return self.matmul(x, self.weight) * ops.rsqrt((x * x).sum(-1, keepdims=True) + _SQUARE)


class ETRRouter(LocalisingRouter):
    """Tokens choose experts by affinity, then experts choose among the tokens that came; late in training experts
    choose among all tokens.

    1. Affinity: cosine of token and GrAP weights; a_ti = softmax over i of cos(x_t, w_i) / temperature.
    2. Token choice: the k largest a_ti of token t; the probability a_ti is the weight.
    3. Expert choice: an expert that more tokens want than it has slots keeps those of largest weight. That is the
       dispatcher's part, with drop priority `weight`.
    4. Load-balancing and locality losses of LocMoE.

    The fourth version of the paper has token choice early in training and expert choice late. With
    `expert_choice_start_step`, in training and after that step, step 2 becomes (expert choice, arXiv 2202.09368):

    2. Of the S tokens of its group with the same home, expert i takes the ceil(k * S / n) of largest a_ti, of equal
       ones the earlier. A token keeps at most k of the experts that took it, those of largest a_ti (the cap of arXiv
       2202.09368, section 4.4); where fewer took it, its other choices are absent: id E, weight 0.

    The paper is read as follows. Softmax, because the losses need a distribution over experts and expert choice ranks
    tokens by it. A temperature, because cosines to n orthogonal rows have a sum of squares of at most 1 and alone would
    make every weight nearly 1/n. The localising loss as LocMoE's, which it extends; the load-balancing loss with it,
    because token choice alone does not balance. Either may have the weight 0.

    Assumed, where we know no more of the fourth version than its order: one step at which tokens stop to choose; as
    many tokens of an expert as an even load has; and homes apart, as slots are, so that choices are the same at any
    parallel degree as long as a home's tokens are processed together. Losses count what tokens would choose, in both
    phases. In evaluation and generation tokens choose, since an expert's choice compares the tokens of a batch with
    each other, later ones too. Selection biases act on the choice of tokens alone.

    Args:
        context: of the router. options: its keys; a temperature that is not above 0 raises InputError.
    """

    def __init__(self, context: RouterContext, options: ETROptions) -> None:
        weights = LossWeights(options.aux_loss_weight, options.locality_loss_weight, options.locality_smoothing)
        super().__init__(context, CosineGate(context.shape), weights)
        if options.temperature <= 0.0:
            raise InputError(f"temperature is {options.temperature}, expected above 0")
        self.sharpness = 1.0 / options.temperature
        start = options.expert_choice_start_step
        self.experts_choose = start is not None
        # A parameter, for it changes in training without another graph: 1 once experts choose.
        self.expert_choice: Any = None
        if self.experts_choose:
            self.expert_choice = Parameter(
                Tensor(float(start == 0), dtype.float32), name="expert_choice", requires_grad=False
            )

    def score(self, values: Tensor) -> Tensor:
        """See `GatedRouter.score`: `values` over the temperature."""
        return values * self.sharpness

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: for `x` and `tokens` what tokens choose or, late in training, what experts do."""
        probabilities = self.probabilities(x, tokens)
        choice, weight = self.select_top_k(ops.stop_gradient(probabilities), probabilities, tokens)
        if not self.experts_choose or not self.training:
            return choice, weight, probabilities
        by_experts, its_weight = self.taken_by_experts(probabilities, tokens)
        late = self.expert_choice.reshape(1, 1) > 0.5  # (1, 1) <- ()
        return ops.select(late, by_experts, choice), ops.select(late, its_weight, weight), probabilities

    def taken_by_experts(self, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """Expert choice among `tokens`, by `probabilities` <float32>[T, n]: experts <int32>[T, k], E less the group's
        first where absent, and their weights <float32>[T, k], 0 there.
        """
        scores = ops.stop_gradient(probabilities)
        sets = tokens["home"] * self.num_groups + tokens["group"]  # (T,)
        rank = rank_within_sets(scores.T, sets).T  # (T, n) <- (n, T)
        by_set, _ = ops.sort(sets)
        size = ops.searchsorted(by_set, sets, right=True) - ops.searchsorted(by_set, sets)  # (T,): S of its own set
        size = ops.cast(size, dtype.int32)
        room = ops.floor_div(size * self.top_k + self.per_group - 1, self.per_group).expand_dims(1)  # (T, 1)
        taken = ops.cast(rank < room, dtype.float32)  # (T, n)
        absent = (self.num_experts - tokens["group"] * self.per_group).reshape(-1, 1)  # (T, 1) <- (T,)
        rest = scores + 2.0 * taken  # those that took the token come first
        choices, weights = [], []
        for _ in range(self.top_k):
            best = self.argmax(rest)  # (T,)
            index = best.reshape(-1, 1)  # (T, 1) <- (T,)
            is_taken = ops.gather_elements(taken, 1, index)  # (T, 1) <- (T, n)
            choices.append(ops.select(is_taken > 0.5, index, absent))
            weights.append(ops.gather_elements(probabilities, 1, index) * is_taken)
            rest = rest - one_hot(best, self.per_group) * 4.0  # below every score: never chosen again
        return ops.concat(choices, 1), ops.concat(weights, 1)  # (T, k) <- k * (T, 1)

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `Router.losses`, with the same `expert`, `probabilities` and `tokens`; what tokens choose is counted."""
        if self.experts_choose and self.training:
            # The same choice as in `select`, which a compiled graph computes once.
            choice, _ = self.select_top_k(ops.stop_gradient(probabilities), probabilities, tokens)
            expert = choice + (tokens["group"] * self.per_group).reshape(-1, 1)  # (T, k) <- (T, k) + (T, 1)
        return super().losses(expert, probabilities, tokens)


def set_expert_choice(network: nn.Cell, value: float) -> None:
    """From now on, in training, experts choose (`value` 1) or tokens do (0), in all routers of `network` that have such
    a step. Compiled graphs stay valid.
    """
    for _, cell in network.cells_and_names():
        if isinstance(cell, ETRRouter) and isinstance(cell.expert_choice, Parameter):
            cell.expert_choice.set_data(Tensor(value, dtype.float32))


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return ETRRouter(context, context.options)
