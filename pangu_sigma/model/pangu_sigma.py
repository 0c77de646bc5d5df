"""PanGu-Sigma: PanGu-alpha's decoder with experts in its upper layers.

Shape legend: B rows of this rank's micro-batch, S positions, T = B * S tokens, d hidden size, V words, E experts,
M sparse layers (the query layer among them, if it is sparse).
"""

from typing import Dict, List, Tuple

from mindspore import Tensor, nn, ops

from locmoe_ops.moe import MoEFeedForward
from locmoe_ops.routers.base import Router
from pangu_sigma.model.attention import attention_mask
from pangu_sigma.model.block import Block, QueryBlock
from pangu_sigma.model.embedding import Embedding, TiedHead
from pangu_sigma.model.feed_forward import FeedForward
from pangu_sigma.model.layers import LayerNorm
from pangu_sigma.model.loss import token_losses
from pangu_sigma.model.sparse import SparseContext, build_sparse_layer


class PanGuSigma(nn.Cell):
    """The network up to the logits.

    1. Embedding of word (and domain) and position.
    2. Dense blocks, then sparse blocks.
    3. Final norm, unless it comes after the query layer (`model.final_norm`).
    4. Query layer, its feed-forward network dense or sparse.
    5. Head tied to the word table.

    Inputs: ids, positions, documents <int32>[B, S]; domain, home, seeds <int32>[B].
    Outputs: logits <compute_dtype>[T, V], of this rank's words in a tensor-parallel group; one report a sparse layer
    (see `MoEFeedForward`). `token_losses` is the cross-entropy that takes such logits.
    """

    def __init__(self, context: SparseContext) -> None:
        super().__init__()
        model, shape = context.config.model, context.shape
        dense, sparse = model.dense_layers, model.sparse_layers
        self.sequence_length = shape.sequence_length
        self.embedding = Embedding(shape, model.domain_embeddings)
        self.blocks = nn.CellList(
            [Block(shape, i, FeedForward(shape, i)) for i in range(dense)]
            + [Block(shape, dense + i, build_sparse_layer(context, i)) for i in range(sparse)]
        )
        self.norm_before_query = model.final_norm == "before_query"
        self.final_norm = LayerNorm(shape.hidden_size, shape.epsilon)
        top = build_sparse_layer(context, sparse) if model.sparse_query_layer else FeedForward(shape, dense + sparse)
        self.query_layer = QueryBlock(shape, dense + sparse, top)
        self.routes_by_word = any(
            isinstance(cell, Router) and "word" in cell.needs for _, cell in self.cells_and_names()
        )
        self.counts_undecided = any(
            isinstance(cell, Router) and cell.counts_undecided for _, cell in self.cells_and_names()
        )
        self.head = TiedHead(shape, model.domain_embeddings)
        self.token_losses = token_losses(shape)

    def construct(
        self, ids: Tensor, positions: Tensor, documents: Tensor, domain: Tensor, home: Tensor, seeds: Tensor
    ) -> Tuple[Tensor, List[Dict[str, Tensor]]]:
        tokens = {
            "ids": ids.reshape(-1),
            "domain": self._per_token(domain),
            "home": self._per_token(home),
            "seed": self._token_seeds(seeds),
        }
        if self.routes_by_word:
            tokens["word"] = self.embedding.vectors(ids, domain)
        mask = attention_mask(documents)
        x = self.embedding(ids, positions, domain, seeds)
        reports = []
        for block in self.blocks:
            x, report = block(x, mask, tokens, seeds)
            if report:
                reports.append(report)
        x = self.final_norm(x) if self.norm_before_query else x
        x, report = self.query_layer(x, positions, mask, tokens, seeds)
        if report:
            reports.append(report)
        x = x if self.norm_before_query else self.final_norm(x)
        return self.head(x, self.embedding.word, domain), reports

    def _per_token(self, row_values: Tensor) -> Tensor:
        return ops.tile(row_values.expand_dims(1), (1, self.sequence_length)).reshape(-1)  # (T,) <- (B,)

    def _token_seeds(self, seeds: Tensor) -> Tensor:
        steps = ops.arange(0, self.sequence_length, 1, dtype=seeds.dtype) * 0x27D4EB2F
        return (seeds.expand_dims(1) + steps).reshape(-1)


def sparse_layers(network: nn.Cell) -> List[MoEFeedForward]:
    """The sparse feed-forward layers, bottom up."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, MoEFeedForward)]
