"""What a router is built from: the one argument of every router file's `build`."""

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import load_router, registered
from locmoe_ops.routers.base import Router, RoutingShape
from locmoe_ops.routers.hash_maps import layer_hash_tables
from locmoe_ops.routers.selection_bias import SelectionBias
from locmoe_ops.topology import ExpertPlacement, Topology


@dataclass(frozen=True)
class RouterContext:
    """One layer's router.

    Attributes:
        name: of the router. own: its section of the configuration, as the file's options class.
        shape: sizes that routers share. layer: number of the sparse layer, from 0. seed: of the run.
        layout, placement: the cluster that homes and locality refer to, and the experts' places in it.
        collectives: of the job; tag: names the router's own among them. statistics: tokens over which a loss's
            statistics are to be taken, see `RoutingStatistics`.
        preference: terms in the selection, where the configuration asks for some and the router takes them.
        vocab_size: token ids; None: not known. token_counts <int64>[G, V]: how often each id occurs in a group's
            training text.
    """

    name: str
    own: Any
    shape: RoutingShape
    layout: Topology
    placement: ExpertPlacement
    collectives: Collectives
    layer: int = 0
    seed: int = 1
    statistics: str = "global"
    preference: Optional[SelectionBias] = None
    vocab_size: Optional[int] = None
    token_counts: Optional[np.ndarray] = None
    tag: str = "moe"

    @property
    def salt(self) -> int:
        """Tells the layer's random numbers from all others (see `locmoe_ops.random`)."""
        return 4 * self.layer + 5

    @property
    def surroundings(self) -> Tuple[RoutingShape, Topology, Collectives, str]:
        """Shape, layout, collectives and tag: what routers without a placement begin with."""
        return self.shape, self.layout, self.collectives, self.tag

    @property
    def placed_surroundings(self) -> Tuple[RoutingShape, Topology, ExpertPlacement, Collectives, str]:
        """The same, with the placement after the layout."""
        shape, layout, collectives, tag = self.surroundings
        return shape, layout, self.placement, collectives, tag

    def hash_tables(self, kind: str) -> np.ndarray:
        """<int32>[G, V], the layer's map from ids to experts of a group. Raises InputError where the number of ids is
        not known.
        """
        if self.vocab_size is None:
            raise InputError(
                f"vocab_size: found none, expected the number of token ids that router '{self.name}' maps to experts"
            )
        return layer_hash_tables(
            kind, self.shape.num_groups, self.shape.per_group, self.vocab_size, self.layer, self.seed, self.token_counts
        )


def make_router(request: RouterContext) -> Router:
    """The router that is asked for. Raises InputError where there is none of the name, or its `build` returns something
    else.
    """
    router = load_router(request.name).build(request)
    if not isinstance(router, Router):
        raise InputError(
            f"{registered(request.name).origin}: build returned a {type(router).__name__}, expected a Router"
        )
    return router
