"""Expert-token resonance, the router of LocMoE+ (Li et al., arXiv 2406.00023).

Shape legend: T tokens, d hidden size, E experts, G groups, n = E / G.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import TERMS, RouterCost, RouterSizes, RouterSpec, check_blocks
from locmoe_ops.routers.base import Router, RoutingShape
from locmoe_ops.routers.context import RouterContext
from locmoe_ops.routers.gated import LocalisingRouter, LossWeights
from locmoe_ops.routers.gates import grap_weights
from locmoe_ops.routers.selection_bias import SelectionBias
from locmoe_ops.topology import ExpertPlacement, Topology


@dataclass(frozen=True)
class ETROptions:
    temperature: float = key(
        0.1, "divides cosine affinities before the softmax; the paper does not give a value", above=0.0
    )
    aux_loss_weight: float = key(0.01, "weight of the load-balancing loss", minimum=0.0)
    locality_loss_weight: float = key(0.01, "weight of the locality loss, as of locmoe", minimum=0.0)
    locality_smoothing: float = key(0.1, "as of locmoe", above=0.0, maximum=1.0)


def _check(own: ETROptions, sizes: RouterSizes) -> None:
    check_blocks("type etr", sizes)


def _cost(own: ETROptions, sizes: RouterSizes) -> RouterCost:
    return RouterCost(products=sizes.per_group * sizes.hidden_size, statistics="node")


ROUTER = RouterSpec(
    ETROptions,
    terms=TERMS,
    second_experts=True,
    gate_weights=True,
    expert_choice=True,
    localises=True,
    check=_check,
    cost=_cost,
)


_SQUARE = 1e-12  # added to |x|^2: a token of zeros has no direction, and affinity 0 to every expert


class CosineGate(nn.Cell):
    """Affinity: the cosine between a token and an expert's row of GrAP weights, the same for every group. Nothing is
    learned.

    Inputs: x <float32>[T, d]; group_mask <float32>[T, G], unused. Output: <float32>[T, n], in [-1, 1].
    """

    def __init__(self, num_experts: int, num_groups: int, hidden_size: int) -> None:
        super().__init__()
        rows = grap_weights(num_experts // num_groups, hidden_size)
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
    load-balancing loss beside it, because token choice alone does not balance. Either goes with weight 0.

    Args:
        temperature: above 0. weights: of the losses. The others: see `LocalisingRouter`.
    """

    def __init__(
        self,
        shape: RoutingShape,
        layout: Topology,
        placement: ExpertPlacement,
        collectives: Collectives,
        tag: str,
        temperature: float,
        weights: LossWeights,
        statistics: str = "global",
        preference: Optional[SelectionBias] = None,
    ) -> None:
        gate = CosineGate(shape.num_experts, shape.num_groups, shape.hidden_size)
        super().__init__(shape, gate, layout, placement, collectives, tag, statistics, weights, preference)
        if temperature <= 0.0:
            raise InputError(f"temperature is {temperature}, expected above 0")
        self.sharpness = 1.0 / temperature

    def score(self, values: Tensor) -> Tensor:
        return values * self.sharpness


def build(request: RouterContext) -> Router:
    own = request.own
    weights = LossWeights(own.aux_loss_weight, own.locality_loss_weight, own.locality_smoothing)
    return ETRRouter(*request.placed_surroundings, own.temperature, weights, request.statistics, request.preference)
