"""GShard's top-2 router (Lepikhin et al., arXiv 2006.16668, Algorithm 1).

Shape legend: T tokens of this rank, d hidden size, E experts, n experts of a group; k = 2 choices.
"""

from dataclasses import replace
from typing import Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.random import SeededUniform
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, RoutingStatistics
from locmoe_ops.routers.gated import GatedRouter
from locmoe_ops.routers.gates import DenseGate
from locmoe_ops.routers.losses import load_balancing_loss
from locmoe_ops.routers.specs.gshard import GShardOptions

_TINY = 1e-20  # keeps a quotient finite where a locality bias picks two experts of probability 0


class GShardRouter(GatedRouter):
    """A learned gate and two experts a token, the second one by chance.

    1. The two largest probabilities, divided by their sum: the weights g1 and g2.
    2. In training the second expert is taken with probability min(1, 2 * g2), so that one which would contribute little
       rarely fills a slot. Otherwise its id is E, which no dispatcher gives a slot, and its weight 0; g1 stays as it
       is. In evaluation it is always taken.
    3. Load-balancing loss of the first choices alone.

    The numbers that decide are a function of the tokens' seeds: the same at any parallel degree and after a resume.

    Args:
        context: of the router; a top_k other than 2 raises InputError. options: its keys.
    """

    def __init__(self, context: RouterContext, options: GShardOptions) -> None:
        shape = context.shape
        super().__init__(context, DenseGate(shape))
        if shape.top_k != 2:
            raise InputError(f"top_k {shape.top_k}: the GShard router sends a token to two experts; expected 2")
        self.aux_loss_weight = options.aux_loss_weight
        self.uniform = SeededUniform(1, context.rng_stream)
        self.sums = RoutingStatistics(replace(context, shape=replace(shape, top_k=1)))

    def offer_second(self, second: nn.Cell) -> None:
        """Raises InputError: there is no place for `second`."""
        raise InputError(
            "the GShard router weighs its two experts against each other; a second expert for overflow has no such "
            "weight"
        )

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: for `x` and `tokens` the two best, or the best and E - the group's first expert."""
        probabilities = self.probabilities(x, tokens)
        choice, weight = self.select_top_k(ops.stop_gradient(probabilities), probabilities, tokens)
        weight = weight / ops.maximum(weight.sum(-1, keepdims=True), _TINY)
        if not self.training:
            return choice, weight, probabilities
        taken = 2.0 * ops.stop_gradient(weight[:, 1:]) > self.uniform(tokens["seed"])  # (T, 1)
        first_of_group = (tokens["group"] * self.per_group).reshape(-1, 1)  # (T, 1) <- (T,)
        absent = self.num_experts - first_of_group  # id E, once the group is added
        second = ops.select(taken, choice[:, 1:], absent)
        second_weight = weight[:, 1:] * ops.cast(taken, dtype.float32)
        choice = ops.concat((choice[:, :1], second), 1)  # (T, 2) <- (T, 1), (T, 1)
        weight = ops.concat((weight[:, :1], second_weight), 1)  # (T, 2) <- (T, 1), (T, 1)
        return choice, weight, probabilities

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `Router.losses`, with the same `expert`, `probabilities` and `tokens`."""
        counts, sums = self.sums(expert[:, :1], probabilities, tokens["group"], tokens["home"])
        return load_balancing_loss(counts, sums, self.num_groups) * self.aux_loss_weight, Tensor(0.0, dtype.float32)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return GShardRouter(context, context.options)
