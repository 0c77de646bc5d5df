"""Dispatchers move tokens to the experts that a router chose, and back."""

from locmoe_ops.dispatch.flat import FlatDispatcher

__all__ = ["FlatDispatcher"]
