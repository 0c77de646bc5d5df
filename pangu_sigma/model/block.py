"""Decoder blocks: attention and a feed-forward network, each normed before and added to the residual stream."""

from typing import Dict, Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.random import SeededDropout
from pangu_sigma.model.attention import QueryAttention, SelfAttention
from pangu_sigma.model.dims import ModelDims
from pangu_sigma.model.layers import LayerNorm, constant


class Block(nn.Cell):
    """Pre-norm decoder block.

    1. x += dropout(attention(norm(x)))
    2. x += dropout(feed_forward(norm(x))), dense or sparse

    Args:
        index: position in the network; names its dropout streams.

    Inputs: x <float32>[T, d]; mask <float32>[B, 1, S, S]; tokens, dict of <int32>[T]; seeds <int32>[B].
    Outputs: x <float32>[T, d]; what the feed-forward network reports.
    """

    attention_kind = SelfAttention

    def __init__(self, shape: ModelDims, index: int, feed_forward: nn.Cell) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(shape.hidden_size, shape.epsilon)
        self.attention = self.attention_kind(shape, salt=4 * index + 2)
        self.ffn_norm = LayerNorm(shape.hidden_size, shape.epsilon)
        self.feed_forward = feed_forward
        row = shape.sequence_length * shape.hidden_size
        self.attention_dropout = SeededDropout(shape.hidden_dropout, row, salt=4 * index + 3)
        self.ffn_dropout = SeededDropout(shape.hidden_dropout, row, salt=4 * index + 4)

    def construct(
        self, x: Tensor, mask: Tensor, tokens: Dict[str, Tensor], seeds: Tensor
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        return self.add_to(x, self.attention(self.attention_norm(x), mask, seeds), tokens, seeds)

    def add_to(
        self, x: Tensor, attended: Tensor, tokens: Dict[str, Tensor], seeds: Tensor
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """The residual sums, given what attention found."""
        x = x + ops.cast(self.attention_dropout(attended, seeds), dtype.float32)
        y, report = self.feed_forward(self.ffn_norm(x), tokens)
        return x + ops.cast(self.ffn_dropout(y, seeds), dtype.float32), report


class QueryBlock(Block):
    """PanGu-alpha's query layer: a block whose attention asks with a learned vector per position.

    Inputs: x <float32>[T, d]; positions <int32>[B, S]; the rest and the outputs as `Block`.
    """

    attention_kind = QueryAttention

    def __init__(self, shape: ModelDims, index: int, feed_forward: nn.Cell) -> None:
        super().__init__(shape, index, feed_forward)
        self.top_query = constant((shape.sequence_length, shape.hidden_size), 0.0, "top_query")

    def construct(  # type: ignore[override]  # it asks by position as well
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor,
        tokens: Dict[str, Tensor],
        seeds: Tensor,
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        query = ops.gather(self.top_query, positions.reshape(-1), 0)
        return self.add_to(x, self.attention(query, self.attention_norm(x), mask, seeds), tokens, seeds)
