"""Switch Transformers' router (arXiv 2101.03961).

Shape legend: T tokens of this rank, d hidden size.
"""

from typing import Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.random import SeededUniform
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, RoutingStatistics
from locmoe_ops.routers.gated import GatedRouter
from locmoe_ops.routers.gates import DenseGate
from locmoe_ops.routers.losses import load_balancing_loss
from locmoe_ops.routers.specs.switch import SwitchOptions


class SwitchRouter(GatedRouter):
    """Switch Transformers' router (arXiv 2101.03961): learned gate, input jitter in training, load-balancing loss.

    Args:
        context: of the router. options: its keys.
    """

    def __init__(self, context: RouterContext, options: SwitchOptions) -> None:
        super().__init__(context, DenseGate(context.shape))
        self.aux_loss_weight = options.aux_loss_weight
        self.jitter = options.jitter
        hidden_size = context.shape.hidden_size
        self.uniform = SeededUniform(hidden_size, context.rng_stream) if self.jitter > 0.0 else nn.Identity()
        self.sums = RoutingStatistics(context)

    def prepare(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `GatedRouter.prepare`: `x`, in training with the jitter of `tokens`."""
        x = ops.cast(x, dtype.float32)
        if self.jitter == 0.0 or not self.training:
            return x
        return x * (1.0 + self.jitter * (2.0 * self.uniform(tokens["seed"]) - 1.0))

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `Router.losses`, with the same `expert`, `probabilities` and `tokens`."""
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        return load_balancing_loss(counts, sums, self.num_groups) * self.aux_loss_weight, Tensor(0.0, dtype.float32)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return SwitchRouter(context, context.options)
