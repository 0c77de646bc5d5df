"""Which layers compute in the backward pass anew what they would else keep from the forward pass."""

from typing import Sequence

from locmoe_ops.moe import MoEFeedForward
from pangu_sigma.model.pangu_sigma import PanGuSigma


def set_recompute(network: PanGuSigma, parts: Sequence[str]) -> None:
    """Marks the halves of layers, each with the norm before it, before the network is compiled; of layers with experts
    the experts alone, shared ones too: routing and what travels between ranks are kept.

    Args:
        network: the one to mark, once.
        parts: of each layer, as `pangu_sigma.config.derived.recomputed_parts` gives them.
    """
    for block, part in zip(network.all_blocks(), parts):
        if part != "none":
            block.normed_attention.recompute()
        if part == "all" and isinstance(block.feed_forward, MoEFeedForward):
            block.feed_forward.experts.recompute()
            if block.feed_forward.has_shared_experts:
                block.feed_forward.shared_experts.recompute()
        elif part == "all":
            block.normed_feed_forward.recompute()
