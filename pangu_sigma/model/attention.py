"""Masked multi-head attention. Shape legend: B rows, S positions, T = B * S, H heads, D head size, d = H * D."""

import math

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.random import SeededDropout
from pangu_sigma.model.layers import Linear
from pangu_sigma.model.shape import ModelShape


def attention_mask(documents: Tensor) -> Tensor:
    """<float32>[B, 1, S, S]: 0 where a position may look (itself and earlier ones of its document), -10000 elsewhere.

    documents: <int32>[B, S], number of the document within its row.
    """
    length = documents.shape[1]
    same = ops.equal(documents.expand_dims(2), documents.expand_dims(1))
    allowed = ops.logical_and(same, ops.ones((length, length), dtype.float32).tril() > 0)
    return (ops.cast(allowed, dtype.float32) - 1.0).expand_dims(1) * 10000.0


class AttentionCore(nn.Cell):
    """softmax(Q K^T / sqrt(D) + mask) V; the softmax in float32.

    Inputs: query, key, value <float>[B, H, S, D]; mask <float32>[B, 1, S, S]; seeds <int32>[B].
    Output: <float>[T, d].
    """

    def __init__(self, shape: ModelShape, salt: int) -> None:
        super().__init__()
        self.width = shape.hidden_size
        self.scale = 1.0 / math.sqrt(shape.head_size)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.dropout = SeededDropout(shape.attention_dropout, shape.num_heads * shape.sequence_length ** 2, salt)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        scores = ops.cast(self.scores(query * self.scale, key), dtype.float32) + mask
        probabilities = self.dropout(self.softmax(scores), seeds)
        mixed = self.mix(ops.cast(probabilities, value.dtype), value)
        return mixed.transpose(0, 2, 1, 3).reshape(-1, self.width)


class SelfAttention(nn.Cell):
    """Causal self-attention: one product for query, key and value, the core, the output map.

    Inputs: x <float>[T, d] (normed); mask <float32>[B, 1, S, S]; seeds <int32>[B]. Output: <compute_dtype>[T, d].
    """

    def __init__(self, shape: ModelShape, salt: int) -> None:
        super().__init__()
        self.split = (shape.rows, shape.sequence_length, 3, shape.num_heads, shape.head_size)
        self.qkv = Linear(shape.hidden_size, 3 * shape.hidden_size, shape.compute_dtype)
        self.unstack = ops.Unstack(axis=0)
        self.core = AttentionCore(shape, salt)
        self.project = Linear(shape.hidden_size, shape.hidden_size, shape.compute_dtype, residual=True)

    def construct(self, x: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        query, key, value = self.unstack(self.qkv(x).reshape(self.split).transpose(2, 0, 3, 1, 4))  # (3, B, H, S, D)
        return self.project(self.core(query, key, value, mask, seeds))


class QueryAttention(nn.Cell):
    """The query layer's attention (PanGu-alpha): queries are learned per position, keys and values come from the text.

    Inputs: query <float32>[T, d] (top-query embedding, not normed); x <float>[T, d] (normed); mask, seeds as above.
    Output: <compute_dtype>[T, d].
    """

    def __init__(self, shape: ModelShape, salt: int) -> None:
        super().__init__()
        self.heads = (shape.rows, shape.sequence_length, shape.num_heads, shape.head_size)
        self.split = (shape.rows, shape.sequence_length, 2, shape.num_heads, shape.head_size)
        self.query = Linear(shape.hidden_size, shape.hidden_size, shape.compute_dtype)
        self.key_value = Linear(shape.hidden_size, 2 * shape.hidden_size, shape.compute_dtype)
        self.unstack = ops.Unstack(axis=0)
        self.core = AttentionCore(shape, salt)
        self.project = Linear(shape.hidden_size, shape.hidden_size, shape.compute_dtype, residual=True)

    def construct(self, query: Tensor, x: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        query = self.query(query).reshape(self.heads).transpose(0, 2, 1, 3)
        key, value = self.unstack(self.key_value(x).reshape(self.split).transpose(2, 0, 3, 1, 4))
        return self.project(self.core(query, key, value, mask, seeds))
