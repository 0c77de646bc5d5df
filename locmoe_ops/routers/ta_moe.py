"""TA-MoE's router: a load-balancing loss whose targets follow the links (Chen et al., NeurIPS 2022, arXiv 2302.09915).

Shape legend: V nodes, E experts, G groups.
"""

from dataclasses import dataclass, replace
from typing import Dict, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterCost, RouterSizes, RouterSpec, dense_gate_cost
from locmoe_ops.routers.base import Router, RoutingShape, local_experts_of_nodes, segment_count
from locmoe_ops.routers.context import RouterContext
from locmoe_ops.routers.losses import topology_loss
from locmoe_ops.routers.selection_bias import SelectionBias
from locmoe_ops.routers.switch import SwitchRouter
from locmoe_ops.topology import ExpertPlacement, Topology


@dataclass(frozen=True)
class TAMoEOptions:
    bandwidth_ratio: float = key(
        4.0, "bandwidth of a link inside a node over one between nodes; 1: the loss of switch", above=0.0
    )
    aux_loss_weight: float = key(0.01, "weight of the topology loss", minimum=0.0)


def _cost(own: TAMoEOptions, sizes: RouterSizes) -> RouterCost:
    return replace(dense_gate_cost(own, sizes), statistics="node")


ROUTER = RouterSpec(
    TAMoEOptions, terms=("local_term",), second_experts=True, gate_weights=True, localises=True, cost=_cost
)


def bandwidth_shares(local: np.ndarray, num_groups: int, bandwidth_ratio: float) -> np.ndarray:
    """Target shares of a node's tokens: proportional to the bandwidth of the link to the expert, within each group.

    Then every link of a node is busy for the same time, and none is waited for.

    Args:
        local: <float>[V, E], 1 where the expert is on the node. bandwidth_ratio: inside a node over between nodes.

    Returns: <float32>[V, E], sum 1 over each group's experts; uniform where a node has all of them or none.
    """
    bandwidth = np.where(local > 0, bandwidth_ratio, 1.0).reshape(len(local), num_groups, -1)
    return (bandwidth / bandwidth.sum(-1, keepdims=True)).reshape(local.shape).astype(np.float32)


class TAMoERouter(SwitchRouter):
    """Switch's choice with TA-MoE's loss: it is least where a node's tokens go to experts in proportion to the links'
    bandwidth.

    Targets differ between nodes, so the loss takes f and P over the tokens of one home rank (`statistics` rank) or of
    one home node (node, global). All links inside nodes are taken to be alike, and all between nodes.

    Args:
        layout, placement: which experts are near which tokens. bandwidth_ratio: of a link inside a node to one between
            nodes, above 0; with 1 the loss is switch's.
        The others: see `SwitchRouter`.
    """

    def __init__(
        self,
        shape: RoutingShape,
        layout: Topology,
        placement: ExpertPlacement,
        collectives: Collectives,
        tag: str,
        bandwidth_ratio: float,
        statistics: str = "global",
        aux_loss_weight: float = 0.01,
        preference: Optional[SelectionBias] = None,
    ) -> None:
        segments = max(segment_count(statistics, layout), layout.nodes)
        super().__init__(
            shape,
            layout,
            collectives,
            tag,
            "rank" if statistics == "rank" else "node",
            aux_loss_weight,
            preference=preference,
        )
        if bandwidth_ratio <= 0.0:
            raise InputError(f"bandwidth_ratio is {bandwidth_ratio}, expected above 0")
        shares = bandwidth_shares(local_experts_of_nodes(layout, placement), shape.num_groups, bandwidth_ratio)
        self.shares = Tensor(np.repeat(shares, segments // layout.nodes, 0))

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        return topology_loss(counts, sums, self.shares, self.num_groups) * self.aux_loss_weight, Tensor(
            0.0, dtype.float32
        )


def build(request: RouterContext) -> Router:
    own = request.own
    return TAMoERouter(
        *request.placed_surroundings, own.bandwidth_ratio, request.statistics, own.aux_loss_weight, request.preference
    )
