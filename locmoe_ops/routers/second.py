"""Where a token goes if an expert that it chose has no slot for it.

Shape legend: T tokens of this rank, k choices, n experts of a group, E experts.
"""

from typing import Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.routers.base import RoutingShape, one_hot
from locmoe_ops.routers.selection_bias import LocalExperts
from locmoe_ops.topology import ExpertPlacement, Topology


class SecondExpert(nn.Cell):
    """The best local expert that a token has not chosen: of its group, on its home node, of the largest probability.

    There is one alternative, so overflow is re-picked once. Its weight is its own probability, through which a
    gradient reaches the router as it does through the weights of first choices. Of equal probabilities the lower index
    wins.

    Args:
        shape: sizes. layout, placement: the cluster that homes refer to, and the experts' places in it.

    Inputs: choice <int32>[T, k], experts within the group; probabilities <float32>[T, n]; home, group <int32>[T].
    Output: expert <int32>[T], its global id, E where the node has none left; weight <float32>[T], 0 there.
    """

    def __init__(self, shape: RoutingShape, layout: Topology, placement: ExpertPlacement) -> None:
        super().__init__()
        self.per_group, self.num_experts, self.top_k = shape.per_group, shape.num_experts, shape.top_k
        self.local = LocalExperts(shape, layout, placement)

    def construct(self, choice: Tensor, probabilities: Tensor, home: Tensor, group: Tensor) -> Tuple[Tensor, Tensor]:
        left = self.local(home, group)  # (T, n)
        for k in range(self.top_k):
            left = left * (1.0 - one_hot(choice[:, k], self.per_group))
        # Probabilities are 0 or more, so whatever is left beats what is not.
        scores = ops.stop_gradient(probabilities) * left + left
        best = ops.cast(ops.argmax(scores, -1), dtype.int32)
        weight = (probabilities * one_hot(best, self.per_group) * left).sum(1)
        expert = ops.select(
            ops.amax(left, 1) > 0.5, best + group * self.per_group, ops.full_like(group, self.num_experts)
        )
        return expert, weight
