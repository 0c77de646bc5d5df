"""Level-2 routers: which expert of its group a token goes to."""

from locmoe_ops.routers.balance import BalanceBias, BalanceUpdate, balance_biases
from locmoe_ops.routers.base import Router, RoutingShape, SegmentSums
from locmoe_ops.routers.etr import CosineGate, ETRRouter
from locmoe_ops.routers.faster_moe import FasterMoERouter
from locmoe_ops.routers.gated import GatedRouter, LocMoERouter, LossWeights, SwitchRouter, Ties
from locmoe_ops.routers.gates import DenseGate, GrAPGate, grap_weights
from locmoe_ops.routers.gshard import GShardRouter
from locmoe_ops.routers.hash import HashRouter
from locmoe_ops.routers.local_term import LocalTerm, current_strength, local_strength, set_local_strength
from locmoe_ops.routers.preference import Preference, Sum
from locmoe_ops.routers.second import SecondExpert
from locmoe_ops.routers.ta_moe import TAMoERouter, bandwidth_shares

__all__ = [
    "BalanceBias",
    "BalanceUpdate",
    "CosineGate",
    "DenseGate",
    "ETRRouter",
    "FasterMoERouter",
    "GShardRouter",
    "GatedRouter",
    "GrAPGate",
    "HashRouter",
    "LocMoERouter",
    "LocalTerm",
    "LossWeights",
    "Preference",
    "Router",
    "RoutingShape",
    "SecondExpert",
    "SegmentSums",
    "Sum",
    "SwitchRouter",
    "TAMoERouter",
    "Ties",
    "balance_biases",
    "bandwidth_shares",
    "current_strength",
    "grap_weights",
    "local_strength",
    "set_local_strength",
]
