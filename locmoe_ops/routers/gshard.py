"""GShard's top-2 router (Lepikhin et al., arXiv 2006.16668, Algorithm 1)."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.random import SeededUniform
from locmoe_ops.router_registry import RouterSpec, dense_gate_cost
from locmoe_ops.routers.base import Router, RoutingShape, RoutingStatistics
from locmoe_ops.routers.context import RouterContext
from locmoe_ops.routers.gated import GatedRouter
from locmoe_ops.routers.gates import DenseGate
from locmoe_ops.routers.losses import load_balancing_loss
from locmoe_ops.routers.selection_bias import SelectionBias
from locmoe_ops.topology import Topology


@dataclass(frozen=True)
class GShardOptions:
    aux_loss_weight: float = key(0.01, "weight of the load-balancing loss of first choices", minimum=0.0)


ROUTER = RouterSpec(GShardOptions, top_k=2, terms=("local_term",), gate_weights=True, cost=dense_gate_cost)


_TINY = 1e-20  # keeps a quotient finite where a local term picks two experts of probability 0


class GShardRouter(GatedRouter):
    """A learned gate and two experts a token, the second one by chance.

    1. The two largest probabilities, divided by their sum: the weights g1 and g2.
    2. In training the second expert is taken with probability min(1, 2 * g2), so that one which would contribute little
       rarely fills a slot. Otherwise its id is E, which no dispatcher gives a slot, and its weight 0; g1 stays as it
       is. In evaluation it is always taken.
    3. Load-balancing loss of the first choices alone.

    The numbers that decide are a function of the tokens' seeds: the same at any parallel degree and after a resume.

    Args:
        shape: its top_k must be 2. statistics: segment of the loss's f and P. aux_loss_weight: factor on the loss.
        salt: tells the chances of layers apart. preference: see `GatedRouter`.

    Raises InputError for another top_k.
    """

    def __init__(
        self,
        shape: RoutingShape,
        layout: Topology,
        collectives: Collectives,
        tag: str,
        statistics: str = "global",
        aux_loss_weight: float = 0.01,
        salt: int = 0,
        preference: Optional[SelectionBias] = None,
    ) -> None:
        super().__init__(shape, DenseGate(shape.num_experts, shape.num_groups, shape.hidden_size), preference)
        if shape.top_k != 2:
            raise InputError(f"top_k {shape.top_k}: the GShard router sends a token to two experts; expected 2")
        self.aux_loss_weight = aux_loss_weight
        self.uniform = SeededUniform(1, salt)
        first_alone = RoutingShape(shape.hidden_size, shape.num_experts, shape.num_groups)
        self.sums = RoutingStatistics(first_alone, statistics, layout, collectives, tag)

    def offer_second(self, second: nn.Cell) -> None:
        raise InputError(
            "the GShard router weighs its two experts against each other; a second expert for overflow has no such weight"
        )

    def choose(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        probabilities = self.probabilities(x, tokens)
        choice, weight = self.pick(ops.stop_gradient(probabilities), probabilities, tokens)
        weight = weight / ops.maximum(weight.sum(-1, keepdims=True), _TINY)
        if not self.training:
            return choice, weight, probabilities
        taken = 2.0 * ops.stop_gradient(weight[:, 1:]) > self.uniform(tokens["seed"])  # (T, 1)
        absent = self.num_experts - (tokens["group"] * self.per_group).reshape(-1, 1)  # id E, once the group is added
        second = ops.select(taken, choice[:, 1:], absent)
        second_weight = weight[:, 1:] * ops.cast(taken, dtype.float32)
        return ops.concat((choice[:, :1], second), 1), ops.concat((weight[:, :1], second_weight), 1), probabilities

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        counts, sums = self.sums(expert[:, :1], probabilities, tokens["group"], tokens["home"])
        return load_balancing_loss(counts, sums, self.num_groups) * self.aux_loss_weight, Tensor(0.0, dtype.float32)


def build(request: RouterContext) -> Router:
    return GShardRouter(
        *request.surroundings, request.statistics, request.own.aux_loss_weight, request.salt, request.preference
    )
