"""Expert-token resonance, the router of LocMoE+ (Li et al., arXiv 2406.00023).

Shape legend: T tokens, d hidden size, E experts, G groups, n = E / G.
"""

import numpy as np

from mindspore import Tensor, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router, RouterContext, RoutingShape
from locmoe_ops.routers.gated import LocalisingRouter, LossWeights
from locmoe_ops.routers.gates import grap_weights
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
    """Tokens choose experts by affinity, then experts choose among the tokens that came.

    1. Affinity: cosine of token and GrAP weights.
    2. Token choice: the k largest of softmax(affinity / temperature); the probability is the weight.
    3. Expert choice: an expert that more tokens want than it has slots keeps those of largest weight. That is the
       dispatcher's part, with drop priority `weight`.
    4. Load-balancing and locality losses of LocMoE.

    The paper is read as follows. Softmax, because the losses need a distribution over experts and expert choice (arXiv
    2202.09368) ranks tokens by it. A temperature, because cosines to n orthogonal rows have a sum of squares of at most
    1 and alone would make every weight nearly 1/n. The localising loss as LocMoE's, which it extends; the
    load-balancing loss with it, because token choice alone does not balance. Either may have the weight 0.

    Args:
        context: of the router. options: its keys; a temperature that is not above 0 raises InputError.
    """

    def __init__(self, context: RouterContext, options: ETROptions) -> None:
        weights = LossWeights(options.aux_loss_weight, options.locality_loss_weight, options.locality_smoothing)
        super().__init__(context, CosineGate(context.shape), weights)
        if options.temperature <= 0.0:
            raise InputError(f"temperature is {options.temperature}, expected above 0")
        self.sharpness = 1.0 / options.temperature

    def score(self, values: Tensor) -> Tensor:
        """See `GatedRouter.score`: `values` over the temperature."""
        return values * self.sharpness


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return ETRRouter(context, context.options)
