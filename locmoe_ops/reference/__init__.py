"""The MoE layer in plain NumPy loops over N simulated ranks: the yardstick of the compiled layers.

Written for reading, not for speed. It shares no code with the layers it judges; of the rest of `locmoe_ops` it knows
only the topology, which says what runs where.
"""

from locmoe_ops.reference.layer import moe_layer, moe_layer_gradients
from locmoe_ops.reference.routing import grap_weights
from locmoe_ops.reference.spec import LayerGradients, LayerParameters, LayerResult, LayerSpec, LayerStats, RankTokens

__all__ = [
    "LayerGradients",
    "LayerParameters",
    "LayerResult",
    "LayerSpec",
    "LayerStats",
    "RankTokens",
    "grap_weights",
    "moe_layer",
    "moe_layer_gradients",
]
