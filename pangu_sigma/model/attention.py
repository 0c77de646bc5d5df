"""Masked multi-head attention, with or without a cache of keys and values.

Shape legend: B sequences, S positions (with a cache: tokens of a sequence that a call takes), T = B * S tokens, H heads
of this rank, D head size, d hidden size, L places of a cache.

In a tensor-parallel group each rank has its share of the heads: its rows of the projections of query, key and value,
its columns of the output projection.
"""

import math
from typing import Dict, Optional, Tuple, TypedDict

from mindspore import Tensor, dtype, nn, ops
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from locmoe_ops.random import SeededDropout
from pangu_sigma.model.dims import BatchContext, ModelDims
from pangu_sigma.model.layers import Linear, column_parallel, row_parallel


def attention_mask(documents: Tensor) -> Tensor:
    """<float32>[B, 1, S, S]: 0 where a position may look (itself and earlier ones of its document), -10000 elsewhere.

    documents: <int32>[B, S], number of the document within its row.
    """
    length = documents.shape[1]
    same = ops.equal(documents.expand_dims(2), documents.expand_dims(1))  # (B, S, S) <- (B, S, 1), (B, 1, S)
    allowed = ops.logical_and(same, ops.ones((length, length), dtype.float32).tril() > 0)
    return (ops.cast(allowed, dtype.float32) - 1.0).expand_dims(1) * 10000.0  # (B, 1, S, S) <- (B, S, S)


def cached_mask(places: Tensor, positions: Tensor, length: int) -> Tensor:
    """<float32>[B, 1, S, L]: 0 where a token may look, -10000 elsewhere: from its document's first token to itself.

    Args:
        places, positions: <int32>[B, S], of the tokens that look; a document begins `position` places before.
        length: L.
    """
    others = ops.arange(0, length, 1, dtype=dtype.int32)
    last = places.expand_dims(2)  # (B, S, 1) <- (B, S)
    first = last - positions.expand_dims(2)  # (B, S, 1)
    allowed = ops.logical_and(others <= last, others >= first)  # (B, S, L) <- (L,), (B, S, 1)
    return (ops.cast(allowed, dtype.float32) - 1.0).expand_dims(1) * 10000.0  # (B, 1, S, L) <- (B, S, L)


class KeyValueCache(TypedDict, total=False):
    """Keys and values of earlier tokens, for one attention layer.

    Attributes:
        places: <int32>[B, S], where in the cache this call's tokens belong.
        key, value: <compute_dtype>[B, H, L, D]; missing in a first call, whose S = L tokens fill the cache.
    """

    places: Tensor
    key: Tensor
    value: Tensor


def extend_cache(cache: KeyValueCache, key: Tensor, value: Tensor) -> Dict[str, Tensor]:
    """The key and value of a cache, <float>[B, H, L, D], with those of new tokens in their places.

    Args:
        cache: what there is so far.
        key, value: of this call's tokens, <float>[B, H, S, D]; S is 1, or L for a first call.
    """
    if "key" not in cache:
        return {"key": key, "value": value}
    places = cache["places"]
    return {"key": write_rows(cache["key"], key, places), "value": write_rows(cache["value"], value, places)}


def write_rows(cache: Tensor, new: Tensor, places: Tensor) -> Tensor:
    """The cache [B, H, L, D] with one new row of each sequence and head.

    Args:
        cache: [B, H, L, D]. new: [B, H, 1, D]. places: <int32>[B, 1], of the new rows.
    """
    sequences, heads, length, size = cache.shape
    first = ops.arange(0, sequences * heads * length, length, dtype=dtype.int32)  # (B * H,), each head's place 0
    index = (first.reshape(sequences, heads) + places).reshape(-1, 1)  # (B * H, 1) <- (B, H) <- (B * H,), (B, 1)
    flat = ops.tensor_scatter_update(cache.reshape(-1, size), index, new.reshape(-1, size))  # (B * H * L, D)
    return flat.reshape(cache.shape)  # (B, H, L, D) <- (B * H * L, D)


class AttentionCore(nn.Cell):
    """softmax(Q K^T / sqrt(D) + mask) V; the softmax in float32.

    Args:
        dims: sizes. salt: tells the dropout layers of a model apart.

    Inputs: query <float>[B, H, S, D]; key, value <float>[B, H, L, D] (L = S without a cache); mask <float32>[B, 1, S,
    L]; seeds <int32>[B]. Output: <float>[T, H * D]. H are this rank's heads; dropout goes by their place among all.
    """

    def __init__(self, dims: ModelDims, salt: int) -> None:
        super().__init__()
        self.width = dims.local_heads * dims.head_size
        self.scale = 1.0 / math.sqrt(dims.head_size)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = dims.kernels.softmax_rows()
        length = dims.local_heads * dims.sequence_length**2
        self.dropout = SeededDropout(dims.attention_dropout, length, salt, start=dims.tensor.index * length)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        scores = ops.cast(self.scores(query * self.scale, key), dtype.float32) + mask
        # (B, H, S, L) <- (B * H * S, L) <- (B, H, S, L)
        probabilities = self.softmax(scores.reshape(-1, scores.shape[-1])).reshape(scores.shape)
        probabilities = self.dropout(probabilities, seeds)
        mixed = self.mix(ops.cast(probabilities, value.dtype), value)
        return mixed.transpose(0, 2, 1, 3).reshape(-1, self.width)  # (T, H * D) <- (B, S, H, D) <- (B, H, S, D)


class FlashCore(nn.Cell):
    """`AttentionCore` without dropout as Ascend's FlashAttentionScore, which keeps no scores for the backward pass.
    fp16 and bf16.

    Where all tokens of the rows are there (S = L), it is told that no query sees a later key, and computes the causal
    half of the scores only; the mask still bars other documents. Told nothing, it computes the full square. (By its
    documentation; compiled, not run.)

    Args:
        dims: sizes.

    Inputs (query, key, value, mask, seeds) and output: as `AttentionCore`. Without a cache `mix_rows` takes them as the
    projections leave them, and no head is transposed.
    """

    def __init__(self, dims: ModelDims) -> None:
        super().__init__()
        self.width = dims.local_heads * dims.head_size
        scale = 1.0 / math.sqrt(dims.head_size)
        self.rows = FlashAttentionScore(dims.local_heads, scale_value=scale, next_tokens=0, input_layout="BSH")
        self.causal = FlashAttentionScore(dims.local_heads, scale_value=scale, next_tokens=0, input_layout="BNSD")
        self.cached = FlashAttentionScore(dims.local_heads, scale_value=scale, input_layout="BNSD")

    def mix_rows(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """<float>[T, H * D]: what `construct` makes of the same query, key and value.

        Args:
            query, key, value: <float>[T, H * D]. mask: <float32>[B, 1, S, S].
        """
        shape = (mask.shape[0], mask.shape[2], self.width)
        barred = ops.cast(mask < 0.0, dtype.uint8)
        query, key, value = query.reshape(shape), key.reshape(shape), value.reshape(shape)  # (B, S, H * D) each
        _, _, _, mixed = self.rows(query, key, value, None, None, None, barred, None)
        return mixed.reshape(-1, self.width)  # (T, H * D) <- (B, S, H * D)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
        barred = ops.cast(mask < 0.0, dtype.uint8)
        if query.shape[2] == key.shape[2]:
            _, _, _, mixed = self.causal(query, key, value, None, None, None, barred, None)
        else:
            _, _, _, mixed = self.cached(query, key, value, None, None, None, barred, None)
        return mixed.transpose(0, 2, 1, 3).reshape(-1, self.width)  # (T, H * D) <- (B, S, H, D) <- (B, H, S, D)


def split_heads(x: Tensor, shape: Tuple[int, int, int, int]) -> Tensor:
    """[B, H, S, D] <- [T, H * D], with `shape` (B, S, H, D)."""
    return x.reshape(shape).transpose(0, 2, 1, 3)  # (B, H, S, D) <- (B, S, H, D) <- (T, H * D)


def qkv_projection(dims: ModelDims, has_bias: bool = True) -> Linear:
    """To query, key or value of this rank's heads."""
    return Linear(
        dims.hidden_size,
        dims.hidden_size,
        dims.arithmetic,
        has_bias=has_bias,
        sharding=column_parallel(dims.tensor),
    )


def output_projection(dims: ModelDims, tag: str) -> Linear:
    """From this rank's heads to the residual stream, summed over the tensor-parallel group; `tag` names the sum."""
    return Linear(
        dims.hidden_size, dims.hidden_size, dims.arithmetic, residual=True, sharding=row_parallel(dims.tensor, tag)
    )


class Attention(nn.Cell):
    """Causal attention, the one of all blocks. The query layer's differs in its query alone, which is learned and not
    made of the text (PanGu-alpha).

    1. Query, key and value, each by its own projection as in PanGu-alpha, split into heads.
    2. With a cache: key and value join those of earlier tokens.
    3. The core: every query mixes the values that its mask lets it see.
    4. The output projection.

    Args:
        dims: sizes.
        salt: tells the dropout layers of a model apart, and the layer's collectives.
        learned_query: whether the query is given, and not made of x.

    Inputs: x <float>[T, d] (normed); context (mask, positions and seeds are read); learned_query <float32>[T, d], not
    normed, or None: x asks; cache: see `KeyValueCache`; None: nothing is kept. Outputs: <compute_dtype>[T, d]; key and
    value of the cache <compute_dtype>[B, H, L, D], this call's among them, in a dict, which is empty without a cache.
    """

    def __init__(self, dims: ModelDims, salt: int, learned_query: bool = False) -> None:
        super().__init__()
        tag = f"tensor/attention {salt}"
        self.num_heads, self.head_size = dims.local_heads, dims.head_size
        self.compute_dtype = dims.compute_dtype
        self.copy_in = dims.tensor.copy_in(tag)
        self.copy_in_query = dims.tensor.copy_in(f"{tag}/query") if learned_query else nn.Identity()
        self.query = qkv_projection(dims)
        # Without the bias that PanGu-alpha has here: it adds the same to all scores of a query, which softmax does not
        # see, so that its gradient is rounding alone, and Adam would make steps of it.
        self.key = qkv_projection(dims, has_bias=False)
        self.value = qkv_projection(dims)
        self.core = FlashCore(dims) if dims.flash_attention else AttentionCore(dims, salt)
        self.mixes_rows = dims.flash_attention
        self.project = output_projection(dims, tag)

    def construct(
        self,
        x: Tensor,
        context: BatchContext,
        learned_query: Optional[Tensor] = None,
        cache: Optional[KeyValueCache] = None,
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        sequences, length = context["positions"].shape
        heads = (sequences, length, self.num_heads, self.head_size)
        # Cast before the way in, whose gradient is summed over the group: the sum has the type of what it is of.
        x = self.copy_in(ops.cast(x, self.compute_dtype))
        asking = x if learned_query is None else self.copy_in_query(ops.cast(learned_query, self.compute_dtype))
        query, key, value = self.query(asking), self.key(x), self.value(x)
        if self.mixes_rows and cache is None:
            return self.project(self.core.mix_rows(query, key, value, context["mask"])), {}
        query, key, value = split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)
        kept: Dict[str, Tensor] = {}
        if cache is not None:
            kept = extend_cache(cache, key, value)
            key, value = kept["key"], kept["value"]
        return self.project(self.core(query, key, value, context["mask"], context["seeds"])), kept

    def cache_shape(self, sequences: int, length: int) -> Tuple[int, int, int, int]:
        """(B, H, L, D): shape of the key, and of the value, of a cache for `sequences` of `length` places."""
        return sequences, self.num_heads, length, self.head_size
