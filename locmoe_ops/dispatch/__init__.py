"""Dispatchers move tokens to the experts that a router chose, and back."""
