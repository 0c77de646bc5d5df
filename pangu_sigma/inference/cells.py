"""The graphs of cached decoding: one reads the prompts, the other one token of each row. Both are the trained network
(`PanGuSigma.hidden_states`) with caches, and with dispatchers that drop no token.

Keys and values of earlier tokens are kept, so that a new token costs one token's work. Rows lie at the start of their
part of the cache: token i of a row, counted from 0, has place i whatever its position, and places behind a row's end
are overwritten before they are looked at. Hence prompts of different length need no other mask than the causal one.

The caches are inputs and outputs, two of each attention layer, so that the graphs hold weights alone and can be
exported.

Shape legend: B rows, L places of the cache, Q tokens of a row that a graph takes (L or 1), T = B * Q, H heads, D head
size, d hidden size, V words.
"""

from typing import List, Sequence, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.moe import MoEFeedForward
from pangu_sigma.inference.experts import inference_dispatcher
from pangu_sigma.model.attention import KeyValueCache, cached_mask
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.sparse import SparseContext


class CachedNetwork(nn.Cell):
    """What both graphs are made of: the network of `PanGuSigma`, in evaluation, with caches. Ranks that the experts are
    spread over are all fed the same, and end with the first one's logits, so that they choose the same tokens.

    Args:
        network: trained; it keeps its parameters and their names. context: what it was built from.
        rows: B. tokens: Q. length: L.
    """

    def __init__(self, network: PanGuSigma, context: SparseContext, rows: int, tokens: int, length: int) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.length = length
        placement, collectives = context.slot_rules.placement, context.collectives
        tag = f"inference/{rows} rows of {tokens} to {length}"
        dispatchers = []
        for index, block in enumerate(network.all_blocks()):
            layer, of_block = block.feed_forward, f"{tag}/block {index}"
            dispatchers.append(
                inference_dispatcher(layer.experts, placement, rows * tokens, layer.top_k, collectives, of_block)
                if isinstance(layer, MoEFeedForward)
                else nn.Identity()  # a dense layer asks nothing of it
            )
        self.dispatchers = nn.CellList(dispatchers, auto_prefix=False)
        self.agree = collectives.broadcast("ep", f"{tag}/logits")
        self.set_train(False)

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        places: Tensor,
        domain: Tensor,
        home: Tensor,
        caches: Sequence[KeyValueCache],
    ) -> Tuple[Tensor, List[Tensor]]:
        """-> <float32>[T, d], which the head scores, and the caches with these tokens: key and value of each layer.

        Args:
            ids, positions, places: <int32>[B, Q], places being those in the cache.
            domain, home: <int32>[B].
            caches: one a block, bottom up.
        """
        mask = cached_mask(places, positions, self.length)
        # Nothing is drawn outside training: any numbers do as seeds.
        context = self.network.batch_context(ids, positions, mask, domain, home, domain)
        x, outputs = self.network.hidden_states(ids, domain, context, caches, self.dispatchers)
        kept = []
        for output in outputs:
            kept.append(output["cache"]["key"])
            kept.append(output["cache"]["value"])
        return x, kept

    def scores(self, x: Tensor, domain: Tensor) -> Tensor:
        """<float32>[B, V] <- `x` <float32>[B, d], rows of `domain` <int32>[B]"""
        return self.agree(ops.cast(self.network.head(x, self.network.embedding.word, domain), dtype.float32))


class Prefill(CachedNetwork):
    """Reads prompts.

    Args:
        network, context, rows, length: as `CachedNetwork`.

    Inputs: ids, positions <int32>[B, L], anything behind a row's end; last <int32>[B], place of each prompt's last
    token; domain, home <int32>[B]. Outputs: logits <float32>[B, V] of the token after each prompt; then key and value
    of each layer, bottom up, <compute_dtype>[B, H, L, D].
    """

    def __init__(self, network: PanGuSigma, context: SparseContext, rows: int, length: int) -> None:
        super().__init__(network, context, rows, length, length)
        self.places = Tensor(np.tile(np.arange(length, dtype=np.int32), (rows, 1)))  # (B, L) <- (L,)
        self.starts = Tensor(np.arange(rows, dtype=np.int32) * length)

    def construct(
        self, ids: Tensor, positions: Tensor, last: Tensor, domain: Tensor, home: Tensor
    ) -> Tuple[Tensor, ...]:
        empty: List[KeyValueCache] = [{"places": self.places}] * len(self.dispatchers)
        x, caches = self.run(ids, positions, self.places, domain, home, empty)
        return (self.scores(ops.gather(x, self.starts + last, 0), domain), *caches)  # (B, d) <- (T, d), (B,)


class Decode(CachedNetwork):
    """Reads one more token of each row.

    Args:
        network, context, rows, length: as `CachedNetwork`.

    Inputs: ids, positions, places <int32>[B, 1]; domain, home <int32>[B]; the caches, as `Prefill` gives them. Outputs:
    as `Prefill`.
    """

    def __init__(self, network: PanGuSigma, context: SparseContext, rows: int, length: int) -> None:
        super().__init__(network, context, rows, 1, length)

    def construct(
        self, ids: Tensor, positions: Tensor, places: Tensor, domain: Tensor, home: Tensor, *caches: Tensor
    ) -> Tuple[Tensor, ...]:
        earlier: List[KeyValueCache] = []
        for layer in range(len(self.dispatchers)):
            earlier.append({"places": places, "key": caches[2 * layer], "value": caches[2 * layer + 1]})
        x, kept = self.run(ids, positions, places, domain, home, earlier)
        return (self.scores(x, domain), *kept)


def empty_caches(network: PanGuSigma, rows: int, length: int) -> List[Tensor]:
    """Zeros in the shapes of what `Decode` reads: key and value of each attention layer, bottom up.

    Args:
        network: whose caches. rows: B. length: L.
    """
    found = []
    for block in network.all_blocks():
        zeros = np.zeros(block.attention.cache_shape(rows, length), np.float32)
        found += [Tensor(zeros, block.attention.key.compute_dtype) for _ in ("key", "value")]
    return found


def cache_bytes(network: PanGuSigma, rows: int, length: int) -> int:
    """Bytes of all caches of `network`, for `rows` rows of `length` places."""
    found = 0
    for block in network.all_blocks():
        number_bytes = 4 if block.attention.key.compute_dtype == dtype.float32 else 2
        found += 2 * int(np.prod(block.attention.cache_shape(rows, length))) * number_bytes
    return found
