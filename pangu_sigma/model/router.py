"""From `moe.router` to a router: one function for each type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from locmoe_ops.hash_maps import layer_hash_tables
from locmoe_ops.routers import (
    BalanceBias,
    ETRRouter,
    FasterMoERouter,
    GShardRouter,
    HashRouter,
    LocalTerm,
    LocMoERouter,
    LossWeights,
    Preference,
    Router,
    RoutingShape,
    SecondExpert,
    Sum,
    SwitchRouter,
    TAMoERouter,
)
from locmoe_ops.routers.gates import draw_codes
from locmoe_ops.topology import ExpertPlacement
from pangu_sigma.config.schema import RouterConfig

if TYPE_CHECKING:
    from pangu_sigma.model.sparse import SparseContext


@dataclass(frozen=True)
class _Request:
    """One layer's router: what is asked for and what it is built from. `placement` is that of the context's layout."""

    context: SparseContext
    layer: int
    placement: ExpertPlacement

    @property
    def options(self) -> RouterConfig:
        return self.context.config.moe.router

    @property
    def shape(self) -> RoutingShape:
        moe = self.context.config.moe
        return RoutingShape(self.context.shape.hidden_size, moe.num_experts, moe.num_groups, moe.router.top_k)

    @property
    def salt(self) -> int:
        return 4 * self.layer + 5

    @property
    def surroundings(self) -> Tuple[Any, ...]:
        """Shape, layout, collectives and tag: what routers without a placement begin with."""
        return self.shape, self.context.layout, self.context.collectives, f"layer {self.layer}"

    @property
    def placed_surroundings(self) -> Tuple[Any, ...]:
        """The same, with the placement after the layout."""
        shape, layout, *rest = self.surroundings
        return (shape, layout, self.placement, *rest)

    @property
    def preference(self) -> Optional[Preference]:
        """`moe.router.local_term` and `balance_rate`, as far as they are wanted. The local term has its final strength until a
        schedule sets another.
        """
        terms: List[Preference] = []
        wanted = self.options.local_term
        if wanted.kind != "none":
            terms.append(LocalTerm(wanted.kind, self.shape, self.context.layout, self.placement, wanted.strength))
        if self.options.balance_rate > 0.0:
            terms.append(BalanceBias(self.shape))
        return Sum(terms) if len(terms) > 1 else terms[0] if terms else None

    def hash_tables(self, kind: str) -> np.ndarray:
        """<int32>[G, V], the layer's map from ids to experts of a group."""
        context, shape = self.context, self.shape
        return layer_hash_tables(kind, shape.num_groups, shape.per_group, context.shape.vocab_size, self.layer,
                                 context.config.train.seed, context.token_counts)


def build_router(context: SparseContext, layer: int, layout_placement: ExpertPlacement) -> Router:
    """The level-2 router that `moe.router.type` names.

    Args:
        layer: number of the sparse layer, from 0. layout_placement: experts on the cluster that locality refers to.
    """
    request = _Request(context, layer, layout_placement)
    router = _BUILDERS[context.config.moe.router.type](request)
    if context.config.moe.dispatch.overflow == "repick":
        router.offer_second(SecondExpert(request.shape, context.layout, layout_placement))
    return router


def _hash(request: _Request) -> Router:
    return HashRouter(request.shape, request.hash_tables(request.options.hash.balance))


def _switch(request: _Request) -> Router:
    own = request.options.switch
    return SwitchRouter(*request.surroundings, request.options.statistics, own.aux_loss_weight, own.jitter, request.salt,
                        request.preference)


def _locmoe(request: _Request) -> Router:
    own, shape, seed = request.options.locmoe, request.shape, (request.context.config.train.seed, request.layer)
    order = np.random.default_rng(seed).permutation(shape.hidden_size) if own.blocks == "by_layer" else None
    codes = None
    if own.gate_input == "code":
        winners = request.hash_tables("uniform" if request.context.token_counts is None else "frequency")
        codes = draw_codes(winners, shape.per_group, shape.hidden_size, seed)
    return LocMoERouter(*request.placed_surroundings, own.gate, request.options.statistics, own.aux_loss_weight,
                        own.locality_loss_weight, own.locality_smoothing, request.preference, own.gate_input,
                        order, codes)


def _gshard(request: _Request) -> Router:
    return GShardRouter(*request.surroundings, request.options.statistics, request.options.gshard.aux_loss_weight, request.salt,
                        request.preference)


def _faster_moe(request: _Request) -> Router:
    own = request.options.faster_moe
    return FasterMoERouter(*request.placed_surroundings, own.max_remote_fraction, request.options.statistics, own.aux_loss_weight)


def _ta_moe(request: _Request) -> Router:
    own = request.options.ta_moe
    return TAMoERouter(*request.placed_surroundings, own.bandwidth_ratio, request.options.statistics, own.aux_loss_weight,
                       request.preference)


def _etr(request: _Request) -> Router:
    own = request.options.etr
    weights = LossWeights(own.aux_loss_weight, own.locality_loss_weight, own.locality_smoothing)
    return ETRRouter(*request.placed_surroundings, own.temperature, weights, request.options.statistics, request.preference)


_BUILDERS: Dict[str, Callable[[_Request], Router]] = {
    "hash": _hash, "switch": _switch, "locmoe": _locmoe, "gshard": _gshard, "faster_moe": _faster_moe, "ta_moe": _ta_moe, "etr": _etr,
}
