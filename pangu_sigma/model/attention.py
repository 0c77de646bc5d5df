"""Masked multi-head attention. Shape legend: B rows, S positions, T = B * S, H heads, D head size, d = H * D.

In a tensor-parallel group each rank has H / P of the heads: its rows of the maps of query, key and value, its columns
of the output map.
"""

import math
from typing import Tuple

from mindspore import Tensor, dtype, nn, ops
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from locmoe_ops.random import SeededDropout
from pangu_sigma.model.dims import ModelDims
from pangu_sigma.model.layers import Linear


def attention_mask(documents: Tensor) -> Tensor:
    """<float32>[B, 1, S, S]: 0 where a position may look (itself and earlier ones of its document), -10000 elsewhere.

    documents: <int32>[B, S], number of the document within its row.
    """
    length = documents.shape[1]
    same = ops.equal(documents.expand_dims(2), documents.expand_dims(1))
    allowed = ops.logical_and(same, ops.ones((length, length), dtype.float32).tril() > 0)
    return (ops.cast(allowed, dtype.float32) - 1.0).expand_dims(1) * 10000.0


class SoftmaxRows(nn.Cell):
    """Softmax over the last of two dimensions. The gradient is MindSpore's own formula; in two dimensions its sum over
    rows runs on the CPU kernel that needs no transposed copy.

    Input: scores <float32>[N, S]. Output: <float32>[N, S].
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax(-1)
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(self, scores: Tensor) -> Tensor:
        return self.softmax(scores)

    def bprop(self, scores: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor]:
        return ((dout - self.sum(dout * out, -1)) * out,)


class AttentionCore(nn.Cell):
    """softmax(Q K^T / sqrt(D) + mask) V; the softmax in float32.

    Inputs: query, key, value <float>[B, H, S, D]; mask <float32>[B, 1, S, S]; seeds <int32>[B]. Output: <float>[T, H *
    D]. H are this rank's heads; dropout goes by their place among all.
    """

    def __init__(self, shape: ModelDims, salt: int) -> None:
        super().__init__()
        self.width = shape.local_heads * shape.head_size
        self.scale = 1.0 / math.sqrt(shape.head_size)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = SoftmaxRows()
        length = shape.local_heads * shape.sequence_length**2
        self.dropout = SeededDropout(shape.attention_dropout, length, salt, start=shape.tensor.index * length)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        scores = ops.cast(self.scores(query * self.scale, key), dtype.float32) + mask
        probabilities = self.softmax(scores.reshape(-1, scores.shape[-1])).reshape(scores.shape)
        probabilities = self.dropout(probabilities, seeds)
        mixed = self.mix(ops.cast(probabilities, value.dtype), value)
        return mixed.transpose(0, 2, 1, 3).reshape(-1, self.width)


class FlashCore(nn.Cell):
    """`AttentionCore` without dropout as Ascend's FlashAttentionScore, which keeps no scores for the backward pass.
    fp16 and bf16.

    Inputs and output: as `AttentionCore`.
    """

    def __init__(self, shape: ModelDims) -> None:
        super().__init__()
        self.width = shape.local_heads * shape.head_size
        self.attention = FlashAttentionScore(
            shape.local_heads, scale_value=1.0 / math.sqrt(shape.head_size), input_layout="BNSD"
        )

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        barred = ops.cast(mask < 0.0, dtype.uint8)
        mixed = self.attention(query, key, value, None, None, None, barred, None)[3]
        return mixed.transpose(0, 2, 1, 3).reshape(-1, self.width)


def attention_core(shape: ModelDims, salt: int) -> nn.Cell:
    """The core that the configuration asks for."""
    return FlashCore(shape) if shape.flash_attention else AttentionCore(shape, salt)


def split_heads(x: Tensor, shape: Tuple[int, int, int, int]) -> Tensor:
    """[B, H, S, D] <- [T, d], with `shape` (B, S, H, D)."""
    return x.reshape(shape).transpose(0, 2, 1, 3)


def qkv_projection(shape: ModelDims, has_bias: bool = True) -> Linear:
    """To query, key or value of this rank's heads."""
    return Linear(
        shape.hidden_size, shape.hidden_size, shape.compute_dtype, has_bias=has_bias, part=shape.tensor.slice(0)
    )


def key_map(shape: ModelDims) -> Linear:
    """Without the bias that PanGu-alpha has here: it adds the same to all scores of a query, which softmax does not
    see, so that its gradient is rounding alone, and Adam would make steps of it.
    """
    return qkv_projection(shape, has_bias=False)


def output_projection(shape: ModelDims, tag: str) -> Linear:
    """From this rank's heads back to the residual stream, summed over the tensor-parallel group."""
    return Linear(
        shape.hidden_size,
        shape.hidden_size,
        shape.compute_dtype,
        residual=True,
        part=shape.tensor.slice(1),
        leave=shape.tensor.reduce_out(tag),
    )


class SelfAttention(nn.Cell):
    """Causal self-attention: query, key and value, each by its own map as in PanGu-alpha; the core; the output map.

    Inputs: x <float>[T, d] (normed); mask <float32>[B, 1, S, S]; seeds <int32>[B]. Output: <compute_dtype>[T, d].
    """

    def __init__(self, shape: ModelDims, salt: int) -> None:
        super().__init__()
        tag = f"tensor/attention {salt}"
        self.heads = (shape.rows, shape.sequence_length, shape.local_heads, shape.head_size)
        self.enter = shape.tensor.copy_in(tag)
        self.query = qkv_projection(shape)
        self.key = key_map(shape)
        self.value = qkv_projection(shape)
        self.core = attention_core(shape, salt)
        self.project = output_projection(shape, tag)

    def construct(self, x: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        x = self.enter(x)
        query, key = split_heads(self.query(x), self.heads), split_heads(self.key(x), self.heads)
        value = split_heads(self.value(x), self.heads)
        return self.project(self.core(query, key, value, mask, seeds))


class QueryAttention(nn.Cell):
    """The query layer's attention (PanGu-alpha): queries are learned per position, keys and values come from the text.

    Inputs: query <float32>[T, d] (top-query embedding, not normed); x <float>[T, d] (normed); mask, seeds as above.
    Output: <compute_dtype>[T, d].
    """

    def __init__(self, shape: ModelDims, salt: int) -> None:
        super().__init__()
        tag = f"tensor/attention {salt}"
        self.heads = (shape.rows, shape.sequence_length, shape.local_heads, shape.head_size)
        self.enter = shape.tensor.copy_in(tag)
        self.enter_query = shape.tensor.copy_in(f"{tag}/query")
        self.query = qkv_projection(shape)
        self.key = key_map(shape)
        self.value = qkv_projection(shape)
        self.core = attention_core(shape, salt)
        self.project = output_projection(shape, tag)

    def construct(self, query: Tensor, x: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        x = self.enter(x)
        query = split_heads(self.query(self.enter_query(query)), self.heads)
        key, value = split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads)
        return self.project(self.core(query, key, value, mask, seeds))
