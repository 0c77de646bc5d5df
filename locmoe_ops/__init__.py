"""Building blocks of locality-aware mixture-of-experts layers for MindSpore, usable without the PanGu-Sigma model.

    from locmoe_ops import LocMoERouter, Topology, build_moe

What stands below is imported when it is first asked for: `import locmoe_ops` alone imports nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.errors import CollectiveError, InputError
    from locmoe_ops.experts import ExpertBank
    from locmoe_ops.moe import MoEFeedForward, MultiLevelRouting, build_moe
    from locmoe_ops.router_registry import RouterSpec, add_router_file
    from locmoe_ops.routers.base import Router, RouterContext, RoutingShape, make_router
    from locmoe_ops.routers.etr import ETRRouter
    from locmoe_ops.routers.faster_moe import FasterMoERouter
    from locmoe_ops.routers.gshard import GShardRouter
    from locmoe_ops.routers.hash import HashRouter
    from locmoe_ops.routers.locmoe import LocMoERouter
    from locmoe_ops.routers.switch import SwitchRouter
    from locmoe_ops.routers.ta_moe import TAMoERouter
    from locmoe_ops.topology import ExpertPlacement, Topology

__all__ = [
    "CollectiveError",
    "ETRRouter",
    "ExpertBank",
    "ExpertPlacement",
    "FasterMoERouter",
    "GShardRouter",
    "HashRouter",
    "InputError",
    "LocMoERouter",
    "MoEFeedForward",
    "MultiLevelRouting",
    "Router",
    "RouterContext",
    "RouterSpec",
    "RoutingShape",
    "SwitchRouter",
    "TAMoERouter",
    "Topology",
    "add_router_file",
    "build_moe",
    "create_collectives",
    "make_router",
]
_HOMES = {
    "locmoe_ops.collectives.create": ("create_collectives",),
    "locmoe_ops.errors": ("CollectiveError", "InputError"),
    "locmoe_ops.experts": ("ExpertBank",),
    "locmoe_ops.moe": ("MoEFeedForward", "MultiLevelRouting", "build_moe"),
    "locmoe_ops.router_registry": ("RouterSpec", "add_router_file"),
    "locmoe_ops.routers.base": ("Router", "RouterContext", "RoutingShape", "make_router"),
    "locmoe_ops.routers.etr": ("ETRRouter",),
    "locmoe_ops.routers.faster_moe": ("FasterMoERouter",),
    "locmoe_ops.routers.gshard": ("GShardRouter",),
    "locmoe_ops.routers.hash": ("HashRouter",),
    "locmoe_ops.routers.locmoe": ("LocMoERouter",),
    "locmoe_ops.routers.switch": ("SwitchRouter",),
    "locmoe_ops.routers.ta_moe": ("TAMoERouter",),
    "locmoe_ops.topology": ("ExpertPlacement", "Topology"),
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
