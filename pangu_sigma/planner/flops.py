"""Floating-point operations of a training step, counted from the configuration: products only, two a multiply-add."""

from typing import Dict

from locmoe_ops.router_registry import router_spec
from pangu_sigma.config.derived import ffn_hidden_size, num_blocks, num_sparse_layers
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import router_sizes


def step_flops(config: Config, tokens: int, vocab_size: int) -> Dict[str, float]:
    """FLOPs of forward and backward (twice the forward) for `tokens` tokens, by part.

    Attention counts all S x S scores, masked or not; experts count the tokens they serve, not the slots kept free for
    them.
    """
    model = config.model
    d, ffn = model.hidden_size, ffn_hidden_size(config)
    blocks = num_blocks(config)
    sparse = num_sparse_layers(config)
    dense = blocks + 1 - sparse
    attention = (blocks + 1) * (4 * d * d + 2 * model.sequence_length * d)
    gate = router_spec(config.moe.router.type).cost(config.moe.router.own, router_sizes(config)).products
    forward = {
        "attention": attention,
        "dense FFN": dense * 2 * d * ffn,
        "experts": sparse * config.moe.router.top_k * 2 * d * ffn,
        "routing": gate * sparse,
        "head": d * vocab_size,
    }
    return {part: 3.0 * 2.0 * tokens * count for part, count in forward.items()}
