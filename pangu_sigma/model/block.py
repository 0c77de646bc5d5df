"""Decoder blocks: attention and a feed-forward network, each normed before and added to the residual stream; the dense
feed-forward network of the lower ones, and the shared experts of the upper ones.

Shape legend: B sequences, S positions, T = B * S tokens, d hidden size.
"""

from typing import Any, Dict, Optional, Tuple, TypedDict

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.random import SeededDropout
from pangu_sigma.model.attention import Attention, KeyValueCache
from pangu_sigma.model.dims import BatchContext, ModelDims
from pangu_sigma.model.layers import LayerNorm, Linear, column_parallel, constant, row_parallel


class FeedForward(nn.Cell):
    """`W_out act(W_in x + b_in) + b_out`, with the interface of `locmoe_ops.MoEFeedForward` and nothing to report.

    In a tensor-parallel group each rank has a part of the inner features.

    Args:
        dims: sizes. index: of the layer, unique in the network.

    Inputs: x <float>[T, d]; tokens, dispatcher: unused. Outputs: <compute_dtype>[T, d]; an empty dict.
    """

    def __init__(self, dims: ModelDims, index: int = 0) -> None:
        super().__init__()
        tensor, tag = dims.tensor, f"tensor/feed-forward {index}"
        width, inner, how = dims.hidden_size, dims.ffn_hidden_size, dims.arithmetic
        self.compute_dtype = dims.compute_dtype
        self.copy_in = tensor.copy_in(tag)
        self.w_in = Linear(width, inner, how, sharding=column_parallel(tensor))
        self.act = dims.kernels.activation(dims.activation)
        self.w_out = Linear(inner, width, how, residual=True, sharding=row_parallel(tensor, tag))

    def construct(
        self, x: Tensor, tokens: Dict[str, Tensor], dispatcher: Optional[Dispatcher] = None
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        x = self.copy_in(ops.cast(x, self.compute_dtype))  # the sum of its gradient has this type too
        return self.w_out(self.act(self.w_in(x))), {}


class SharedExperts(FeedForward):
    """The experts of a sparse layer that every token passes through, in one: n networks of f inner features add up to a
    network of n f.

    Args:
        dims: sizes, `ffn_hidden_size` being n f. index: as `FeedForward`.

    Inputs: x <float>[T, d]. Output: <compute_dtype>[T, d].
    """

    def construct(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y, _ = super().construct(x, {})
        return y


class BlockOutput(TypedDict):
    """What a block returns with the residual stream.

    Attributes:
        report: of the feed-forward network; empty where it is dense (see `MoEFeedForward`).
        cache: key and value of the attention, as `Attention` gives them; empty without a cache.
    """

    report: Dict[str, Tensor]
    cache: Dict[str, Tensor]


class Normed(nn.Cell):
    """A sub-layer and the norm before it, which are recomputed together. It owns neither.

    Args:
        norm, layer: of a block.

    Inputs: x <float32>[T, d]; what else the layer takes. Outputs: the layer's.
    """

    def __init__(self, norm: nn.Cell, layer: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.norm = norm
        self.layer = layer

    def construct(self, x: Tensor, *others: Any) -> Any:
        return self.layer(self.norm(x), *others)


class Block(nn.Cell):
    """Pre-norm decoder block.

    1. x += dropout(attention(norm(x)))
    2. x += dropout(feed_forward(norm(x))), dense or sparse

    Args:
        dims: sizes. index: position in the network; names its dropout streams. feed_forward: `FeedForward` or
            `MoEFeedForward`.

    Inputs: x <float32>[T, d]; context: see `BatchContext`; cache: see `Attention`; dispatcher: in place of the sparse
    layer's own (see `MoEFeedForward`). Outputs: x <float32>[T, d]; see `BlockOutput`.
    """

    has_learned_query = False

    def __init__(self, dims: ModelDims, index: int, feed_forward: nn.Cell) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(dims.hidden_size, dims.epsilon, dims.kernels)
        self.attention = Attention(dims, 4 * index + 2, self.has_learned_query)
        self.ffn_norm = LayerNorm(dims.hidden_size, dims.epsilon, dims.kernels)
        self.feed_forward = feed_forward
        row = dims.sequence_length * dims.hidden_size
        self.attention_dropout = SeededDropout(dims.hidden_dropout, row, salt=4 * index + 3)
        self.ffn_dropout = SeededDropout(dims.hidden_dropout, row, salt=4 * index + 4)
        # Not as children, which would rename the parameters of what they hold.
        object.__setattr__(self, "normed_attention", Normed(self.attention_norm, self.attention))
        object.__setattr__(self, "normed_feed_forward", Normed(self.ffn_norm, self.feed_forward))

    def construct(
        self,
        x: Tensor,
        context: BatchContext,
        cache: Optional[KeyValueCache] = None,
        dispatcher: Optional[Dispatcher] = None,
    ) -> Tuple[Tensor, BlockOutput]:
        y, kept = self.normed_attention(x, context, self.learned_query(context), cache)
        x = x + ops.cast(self.attention_dropout(y, context["seeds"]), dtype.float32)
        y, report = self.normed_feed_forward(x, context["tokens"], dispatcher)
        x = x + ops.cast(self.ffn_dropout(y, context["seeds"]), dtype.float32)
        return x, {"report": report, "cache": kept}

    def learned_query(self, context: BatchContext) -> Optional[Tensor]:
        """<float32>[T, d]: what asks in place of the text, or None."""
        return None


class QueryBlock(Block):
    """PanGu-alpha's query layer: a block whose attention asks with a learned vector per position.

    Args:
        dims, index, feed_forward: as `Block`.

    Inputs and outputs: as `Block`.
    """

    has_learned_query = True

    def __init__(self, dims: ModelDims, index: int, feed_forward: nn.Cell) -> None:
        super().__init__(dims, index, feed_forward)
        self.top_query = constant((dims.sequence_length, dims.hidden_size), 0.0, "top_query")

    def learned_query(self, context: BatchContext) -> Optional[Tensor]:
        return ops.gather(self.top_query, context["positions"].reshape(-1), 0)  # (T, d) <- (S, d), (B, S)
