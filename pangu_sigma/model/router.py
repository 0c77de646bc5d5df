"""From `moe.router` to a router."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional

from locmoe_ops.routers.base import Router, RoutingShape
from locmoe_ops.routers.context import RouterContext, make_router
from locmoe_ops.routers.second import SecondExpert
from locmoe_ops.routers.selection_bias import BalanceBias, LocalityBias, SelectionBias, Sum
from locmoe_ops.topology import ExpertPlacement

if TYPE_CHECKING:
    from pangu_sigma.model.sparse import SparseContext


def build_router(context: SparseContext, layer: int, layout_placement: ExpertPlacement) -> Router:
    """The level-2 router that `moe.router.type` names.

    Args:
        layer: number of the sparse layer, from 0. layout_placement: experts on the cluster that locality refers to.
    """
    config, moe = context.config, context.config.moe
    shape = RoutingShape(context.shape.hidden_size, moe.num_experts, moe.num_groups, moe.router.top_k)
    router = make_router(
        RouterContext(
            moe.router.type,
            moe.router.own,
            shape,
            context.layout,
            layout_placement,
            context.collectives,
            layer,
            config.train.seed,
            moe.router.statistics,
            _preference(context, shape, layout_placement),
            context.shape.vocab_size,
            context.token_counts,
            f"layer {layer}",
        )
    )
    if moe.dispatch.overflow == "repick":
        router.offer_second(SecondExpert(shape, context.layout, layout_placement))
    return router


def _preference(context: SparseContext, shape: RoutingShape, placement: ExpertPlacement) -> Optional[SelectionBias]:
    """`moe.router.local_term` and `balance_rate`, as far as they are wanted. The local term has its final strength
    until a schedule sets another.
    """
    terms: List[SelectionBias] = []
    options = context.config.moe.router
    if options.local_term.kind != "none":
        terms.append(
            LocalityBias(options.local_term.kind, shape, context.layout, placement, options.local_term.strength)
        )
    if options.balance_rate > 0.0:
        terms.append(BalanceBias(shape))
    return Sum(terms) if len(terms) > 1 else terms[0] if terms else None
