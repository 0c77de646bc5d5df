"""Level-2 routers: which expert of its group a token goes to."""

from locmoe_ops.routers.base import Router, RoutingShape
from locmoe_ops.routers.gated import LocMoERouter, SwitchRouter
from locmoe_ops.routers.gates import DenseGate, GrAPGate, grap_weights
from locmoe_ops.routers.hash import HashRouter

__all__ = ["DenseGate", "GrAPGate", "HashRouter", "LocMoERouter", "Router", "RoutingShape", "SwitchRouter", "grap_weights"]
