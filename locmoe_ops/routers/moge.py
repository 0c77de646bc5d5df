"""Pangu Pro MoE's mixture of grouped experts (arXiv 2505.21411, Section 2.1).

Shape legend: T tokens of this rank, k choices, n experts of an expert group, D device groups, b = n / D.
"""

import numpy as np

from mindspore import Tensor, ops

from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, one_hot
from locmoe_ops.routers.specs.moge import MoGEOptions, device_blocks
from locmoe_ops.routers.topk import TopKRouter, sizes_of


class MoGERouter(TopKRouter):
    """`TopKRouter` which takes the same number of experts from every device group, so that all devices have the same
    load by design, and a token goes to all of them.

    1. Scores over all experts of the token's (expert) group, which is one softmax in the paper.
    2. From each of the D device groups, which are equal parts of neighbouring experts, the k / D largest scores; of
       equal ones the lower index. First the best of every device group, then the second best, and so on.
    3. Weights are the scores of the chosen, 0 for all others, as the paper has it: neither normalised nor scaled,
       unless the keys ask for it. All else is as in `TopKRouter`.

    The paper's groups are the devices of expert parallelism. `device_groups` sets another number, which then does not
    depend on the layout.

    Args:
        context: of the router; the placement says which device holds which expert. options: its keys; a number of
            device groups that does not divide n or k raises InputError.
    """

    def __init__(self, context: RouterContext, options: MoGEOptions) -> None:
        super().__init__(context, options)
        self.device_groups = device_blocks(options, sizes_of(context.shape), context.placement)
        self.held = self.per_group // self.device_groups  # b
        self.first = Tensor(np.arange(self.device_groups, dtype=np.int32) * self.held)

    def choose(self, scores: Tensor, tokens: RouterTokens) -> Tensor:
        """See `TopKRouter.choose`, with the same `scores` and `tokens`."""
        choices, rest = [], scores
        for _ in range(self.top_k // self.device_groups):
            biased = self.biased_scores(rest, tokens).reshape(-1, self.held)  # (T * D, b) <- (T, n)
            best = self.argmax(biased)  # (T * D,)
            choices.append(best.reshape(-1, self.device_groups) + self.first)  # (T, D) + (D,) <- (T * D,)
            taken = one_hot(best, self.held).reshape(-1, self.per_group)  # (T, n) <- (T * D, b)
            rest = rest - taken * self.out_of_play
        return choices[0] if len(choices) == 1 else ops.concat(choices, 1)  # (T, k) <- k / D * (T, D)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return MoGERouter(context, context.options)
