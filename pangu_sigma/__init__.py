"""PanGu-Sigma with LocMoE routing, for MindSpore."""

__version__ = "0.1.0"
