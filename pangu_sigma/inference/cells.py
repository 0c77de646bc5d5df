"""The graphs of cached decoding: one reads the prompts, the other one token of each row.

Keys and values of earlier tokens are kept, so that a new token costs one token's work. Rows lie at the start of their
part of the
cache: token i of a row, counted from 0, has place i whatever its position, and places behind a row's end are
overwritten before they are looked at. Hence prompts of different length need no other mask than the causal one.

The caches are inputs and outputs, two of each attention layer, so that the graphs hold weights alone and can be
exported.

Shape legend: B rows, L places of the cache, Q tokens of a row that a graph takes (L or 1), T = B * Q, H heads, D head
size, d = H * D, V words.
"""

from dataclasses import replace
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.moe import MoEFeedForward
from pangu_sigma.inference.experts import SparseInference
from pangu_sigma.model.block import Block
from pangu_sigma.model.embedding import TiedHead
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.sparse import SparseContext


def visible(places: Tensor, positions: Tensor, length: int) -> Tensor:
    """<float32>[B, 1, Q, L]: 0 where a token may look, -10000 elsewhere: from its document's first token to itself.

    places, positions: <int32>[B, Q], of the tokens that look; a document begins `position` places before.
    """
    others = ops.arange(0, length, 1, dtype=dtype.int32)
    last = places.expand_dims(2)
    allowed = ops.logical_and(others <= last, others >= last - positions.expand_dims(2))
    return (ops.cast(allowed, dtype.float32) - 1.0).expand_dims(1) * 10000.0


class WriteRows(nn.Cell):
    """The cache with one new row of each batch row in its place.

    Inputs: cache [B, H, L, D]; new [B, H, 1, D]; places <int32>[B, 1]. Output: as cache.
    """

    def __init__(self, rows: int, heads: int, length: int) -> None:
        super().__init__(auto_prefix=False)
        starts = np.arange(rows * heads, dtype=np.int32).reshape(rows, heads) * length
        self.starts = Tensor(starts)

    def construct(self, cache: Tensor, new: Tensor, places: Tensor) -> Tensor:
        index = (self.starts + places).reshape(-1, 1)  # (B*H, 1)
        width = cache.shape[-1]
        return ops.tensor_scatter_update(cache.reshape(-1, width), index, new.reshape(-1, width)).reshape(cache.shape)


class CachedBlock(nn.Cell):
    """A block of the network with a cache. The parts are the network's own.

    Args:
        experts: what stands for the feed-forward part of a sparse block; None: the block's own is dense. tokens: Q.
            heads: H and D.

    Inputs: x <float32>[T, d]; normed <float32>[T, d], x after the norm; asking <float32>[T, d]: what queries are made
    of, the same, or the query layer's top-query vectors; mask <float32>[B, 1, Q, L]; tokens, dict of <int32>[T]; key,
    value [B, H, L, D], of the cache; places <int32>[B, Q]. Outputs: x <float32>[T, d]; key and value, with this call's
    in them.
    """

    def __init__(
        self,
        block: Block,
        experts: Optional[SparseInference],
        rows: int,
        tokens: int,
        heads: Tuple[int, int],
        length: int,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.block = block
        self.heads = (rows, tokens, *heads)
        self.reads_prompt = tokens == length
        self.write = WriteRows(rows, heads[0], length)
        self.sparse = experts is not None
        self.experts = experts or nn.Identity()

    def construct(
        self,
        x: Tensor,
        normed: Tensor,
        asking: Tensor,
        mask: Tensor,
        tokens: Dict[str, Tensor],
        key: Tensor,
        value: Tensor,
        places: Tensor,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        attention = self.block.attention
        new_key, new_value = self._split_heads(attention.key(normed)), self._split_heads(attention.value(normed))
        if self.reads_prompt:
            key, value = new_key, new_value
        else:
            key, value = self.write(key, new_key, places), self.write(value, new_value, places)
        attended = attention.core(self._split_heads(attention.query(asking)), key, value, mask, places)
        x = x + ops.cast(attention.project(attended), dtype.float32)
        normed = self.block.ffn_norm(x)
        y = self.experts(normed, tokens) if self.sparse else self.block.feed_forward(normed, tokens)[0]
        return x + ops.cast(y, dtype.float32), key, value

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.reshape(self.heads).transpose(0, 2, 1, 3)


class CachedNetwork(nn.Cell):
    """What both graphs are made of: the network of `PanGuSigma`, in evaluation, with caches. Ranks that the experts are
    spread over are all fed the same, and end with the first one's logits, so that they choose the same tokens.

    Args:
        network: trained; it keeps its parameters and their names. context: what it was built from. rows: B. tokens: Q.
            length: L.
    """

    def __init__(self, network: PanGuSigma, context: SparseContext, rows: int, tokens: int, length: int) -> None:
        super().__init__(auto_prefix=False)
        shape = context.shape
        self.network = network
        self.tokens, self.length = tokens, length
        heads = (shape.num_heads, shape.head_size)
        blocks = [*network.blocks, network.query_layer]
        tag = f"inference/{rows} rows of {tokens} to {length}"
        experts = [
            self._experts(block, context, rows * tokens, f"{tag}/block {index}") for index, block in enumerate(blocks)
        ]
        self.layers = nn.CellList(
            [CachedBlock(block, own, rows, tokens, heads, length) for block, own in zip(blocks, experts)],
            auto_prefix=False,
        )
        self.agree = context.collectives.broadcast("ep", f"{tag}/logits")
        self.top = len(blocks) - 1
        self.head = TiedHead(replace(shape, rows=rows), network.head.per_domain)
        self.set_train(False)

    def run(
        self, ids: Tensor, positions: Tensor, places: Tensor, domain: Tensor, home: Tensor, caches: Sequence[Tensor]
    ) -> Tuple[Tensor, List[Tensor]]:
        """-> x <float32>[T, d] before the head, and the caches."""
        network = self.network
        tokens = {
            "ids": ids.reshape(-1),
            "domain": self._per_token(domain),
            "home": self._per_token(home),
            "seed": ids.reshape(-1),
        }
        if network.routes_by_word:
            tokens["word"] = network.embedding.vectors(ids, domain)
        mask = visible(places, positions, self.length)
        x = network.embedding(ids, positions, domain, domain)
        kept = []
        for index, layer in enumerate(self.layers):
            if index == self.top and network.norm_before_query:
                x = network.final_norm(x)
            normed = layer.block.attention_norm(x)
            asking = ops.gather(layer.block.top_query, positions.reshape(-1), 0) if index == self.top else normed
            x, key, value = layer(x, normed, asking, mask, tokens, caches[2 * index], caches[2 * index + 1], places)
            kept.append(key)
            kept.append(value)
        return (x if network.norm_before_query else network.final_norm(x)), kept

    def scores(self, x: Tensor, domain: Tensor) -> Tensor:
        """<float32>[B, V] <- <float32>[B, d]"""
        return self.agree(ops.cast(self.head(x, self.network.embedding.word, domain), dtype.float32))

    @staticmethod
    def _experts(block: Block, context: SparseContext, tokens: int, tag: str) -> Optional[SparseInference]:
        if not isinstance(block.feed_forward, MoEFeedForward):
            return None
        return SparseInference(block.feed_forward, context.slot_rules.placement, tokens, context.collectives, tag)

    def _per_token(self, row_values: Tensor) -> Tensor:
        return ops.tile(row_values.expand_dims(1), (1, self.tokens)).reshape(-1)  # (T,) <- (B,)


class Prefill(CachedNetwork):
    """Reads prompts.

    Inputs: ids, positions <int32>[B, L], anything behind a row's end; last <int32>[B], place of each prompt's last
    token; domain, home <int32>[B]. Outputs: logits <float32>[B, V] of the token after each prompt; then key and value
    of each layer, bottom up, <compute_dtype>[B, H, L, D].
    """

    def __init__(self, network: PanGuSigma, context: SparseContext, rows: int, length: int) -> None:
        super().__init__(network, context, rows, length, length)
        self.places = Tensor(np.tile(np.arange(length, dtype=np.int32), (rows, 1)))
        self.starts = Tensor(np.arange(rows, dtype=np.int32) * length)

    def construct(
        self, ids: Tensor, positions: Tensor, last: Tensor, domain: Tensor, home: Tensor
    ) -> Tuple[Tensor, ...]:
        nothing = [domain] * (2 * (self.top + 1))
        x, caches = self.run(ids, positions, self.places, domain, home, nothing)
        return (self.scores(ops.gather(x, self.starts + last, 0), domain), *caches)


class Decode(CachedNetwork):
    """Reads one more token of each row.

    Inputs: ids, positions, places <int32>[B, 1]; domain, home <int32>[B]; the caches, as `Prefill` gives them. Outputs:
    as `Prefill`.
    """

    def __init__(self, network: PanGuSigma, context: SparseContext, rows: int, length: int) -> None:
        super().__init__(network, context, rows, 1, length)

    def construct(
        self, ids: Tensor, positions: Tensor, places: Tensor, domain: Tensor, home: Tensor, *caches: Tensor
    ) -> Tuple[Tensor, ...]:
        x, kept = self.run(ids, positions, places, domain, home, caches)
        return (self.scores(x, domain), *kept)


def cache_bytes(layers: int, rows: int, length: int, hidden_size: int, number_bytes: int = 4) -> int:
    """Bytes of all caches: key and value of `layers` attention layers, the query layer among them."""
    return 2 * layers * rows * length * hidden_size * number_bytes
