"""Floating-point operations of a training step, counted from the configuration: products only, two a multiply-add."""

from typing import Dict

from pangu_sigma.config.schema import Config


def step_flops(config: Config, tokens: int, vocab_size: int) -> Dict[str, float]:
    """FLOPs of forward and backward (twice the forward) for `tokens` tokens, by part.

    Attention counts all S x S scores, masked or not; experts count the tokens they serve, not the slots kept free for them.
    """
    model = config.model
    d, ffn = model.hidden_size, model.ffn_hidden_size or 4 * model.hidden_size
    blocks = model.dense_layers + model.sparse_layers
    sparse = model.sparse_layers + model.sparse_query_layer
    dense = blocks + 1 - sparse
    attention = (blocks + 1) * (4 * d * d + 2 * model.sequence_length * d)
    forward = {"attention": attention, "dense FFN": dense * 2 * d * ffn, "experts": sparse * config.moe.router.top_k * 2 * d * ffn,
               "routing": _gate(config) * sparse, "head": d * vocab_size}
    return {part: 3.0 * 2.0 * tokens * count for part, count in forward.items()}


def _gate(config: Config) -> int:
    router, moe = config.moe.router, config.moe
    if router.type == "hash":
        return 0
    grap = router.type == "locmoe" and router.locmoe.gate == "grap"
    return config.model.hidden_size * (moe.num_experts // moe.num_groups if grap else moe.num_experts)
