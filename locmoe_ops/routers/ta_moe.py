"""TA-MoE's router: a load-balancing loss whose targets follow the links (Chen et al., NeurIPS 2022, arXiv 2302.09915).

Shape legend: V nodes, E experts, G groups, n = E / G, S statistics groups.
"""

from dataclasses import replace
from typing import Tuple

import numpy as np

from mindspore import Tensor, dtype

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import (
    Router,
    RouterContext,
    RouterTokens,
    count_statistics_groups,
    local_experts_of_nodes,
    statistics_by_node,
)
from locmoe_ops.routers.losses import topology_loss
from locmoe_ops.routers.specs.switch import SwitchOptions
from locmoe_ops.routers.specs.ta_moe import TAMoEOptions
from locmoe_ops.routers.switch import SwitchRouter


def bandwidth_shares(local: np.ndarray, num_groups: int, bandwidth_ratio: float) -> np.ndarray:
    """Target shares of a node's tokens: proportional to the bandwidth of the link to the expert, within each group.

    Then every link of a node is busy for the same time, and none is waited for.

    Args:
        local: <float>[V, E], 1 where the expert is on the node.
        num_groups: G. bandwidth_ratio: inside a node over between nodes.

    Returns: <float32>[V, E], sum 1 over each group's experts; uniform where a node has all of them or none.
    """
    bandwidth = np.where(local > 0, bandwidth_ratio, 1.0).reshape(len(local), num_groups, -1)  # (V, G, n) <- (V, E)
    shares = bandwidth / bandwidth.sum(-1, keepdims=True)
    return shares.reshape(local.shape).astype(np.float32)  # (V, E) <- (V, G, n)


class TAMoERouter(SwitchRouter):
    """Switch's choice with TA-MoE's loss: it is least where a node's tokens go to experts in proportion to the links'
    bandwidth.

    Targets differ between nodes, so the loss takes f and P over the tokens of one home node, or of the sets of
    `statistics` where these are smaller. All links inside nodes are taken to be alike, and all between nodes.

    Args:
        context: of the router; layout and placement say which experts are on a token's node.
        options: its keys; a bandwidth_ratio that is not above 0 raises InputError, with 1 the loss is switch's.
    """

    def __init__(self, context: RouterContext, options: TAMoEOptions) -> None:
        if options.bandwidth_ratio <= 0.0:
            raise InputError(f"bandwidth_ratio is {options.bandwidth_ratio}, expected above 0")
        layout, num_groups = context.layout, context.shape.num_groups
        statistics = statistics_by_node(context.statistics, layout)
        groups = count_statistics_groups(statistics, layout)
        super().__init__(replace(context, statistics=statistics), SwitchOptions(options.aux_loss_weight))
        local = local_experts_of_nodes(layout, context.placement)
        shares = bandwidth_shares(local, num_groups, options.bandwidth_ratio)
        self.shares = Tensor(np.repeat(shares, groups // layout.nodes, 0))  # (S, E) <- (V, E)

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `Router.losses`, with the same `expert`, `probabilities` and `tokens`."""
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        aux_loss = topology_loss(counts, sums, self.shares, self.num_groups) * self.aux_loss_weight
        return aux_loss, Tensor(0.0, dtype.float32)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return TAMoERouter(context, context.options)
