"""Dispatchers move tokens to the experts that a router chose, and back."""

from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.flat import FlatDispatcher
from locmoe_ops.dispatch.fused_ragged import FusedRaggedDispatcher
from locmoe_ops.dispatch.hierarchical import HierarchicalDispatcher
from locmoe_ops.dispatch.ragged import RaggedDispatcher
from locmoe_ops.dispatch.shares import EnterWithShares, LeaveWithShares

__all__ = ["Dispatcher", "EnterWithShares", "FlatDispatcher", "FusedRaggedDispatcher", "HierarchicalDispatcher", "LeaveWithShares",
           "RaggedDispatcher"]
