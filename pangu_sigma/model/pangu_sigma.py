"""PanGu-Sigma: PanGu-alpha's decoder with experts in its upper layers.

Shape legend: B sequences of this rank's micro-batch, S positions, T = B * S tokens, d hidden size, V words, E experts,
M sparse layers (the query layer among them, if it is sparse).
"""

from typing import Dict, List, Optional, Sequence, Tuple

from mindspore import Tensor, nn, ops

from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.moe import MoEFeedForward
from locmoe_ops.recompute import BackwardFromHere
from locmoe_ops.routers.base import Router
from pangu_sigma.model.attention import KeyValueCache, attention_mask
from pangu_sigma.model.block import Block, BlockOutput, FeedForward, QueryBlock
from pangu_sigma.model.dims import BatchContext
from pangu_sigma.model.embedding import Embedding, TiedHead
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

    Training, evaluation, cached decoding and export all go through `hidden_states`, which holds 1 to 4.

    Args:
        context: the configuration, sizes, and what the sparse layers share.

    Inputs: ids, positions, documents <int32>[B, S]; domain, home, seeds <int32>[B].
    Outputs: logits <compute_dtype>[T, V], of this rank's words in a tensor-parallel group; one report a sparse layer
    (see `MoEFeedForward`). `token_losses` is the cross-entropy that takes such logits.
    """

    def __init__(self, context: SparseContext) -> None:
        super().__init__()
        model, dims = context.config.model, context.shape
        dense, sparse = model.dense_layers, model.sparse_layers
        self.embedding = Embedding(dims, model.domain_embeddings)
        self.blocks = nn.CellList(
            [Block(dims, i, FeedForward(dims, i)) for i in range(dense)]
            + [Block(dims, dense + i, build_sparse_layer(context, i)) for i in range(sparse)]
        )
        self.norm_before_query = model.final_norm == "before_query"
        self.final_norm = LayerNorm(dims.hidden_size, dims.epsilon, dims.kernels)
        # Its gradient is all that the block below gets; elsewhere that of the residual stream is added.
        self.below_final_norm = BackwardFromHere()
        top = build_sparse_layer(context, sparse) if model.sparse_query_layer else FeedForward(dims, dense + sparse)
        self.query_layer = QueryBlock(dims, dense + sparse, top)
        self.routes_by_word = any(
            isinstance(cell, Router) and "word" in cell.needs for _, cell in self.cells_and_names()
        )
        self.routers_differ = len(context.config.moe.routers) > 0
        self.counts_undecided = any(
            isinstance(cell, Router) and cell.counts_undecided for _, cell in self.cells_and_names()
        )
        self.sums_values = any(isinstance(cell, Router) and cell.sums_values for _, cell in self.cells_and_names())
        self.required_bins = max(
            (cell.required_bins for _, cell in self.cells_and_names() if isinstance(cell, Router)), default=0
        )
        dispatchers = [cell for _, cell in self.cells_and_names() if isinstance(cell, Dispatcher)]
        self.limits_rows = any(cell.limits_rows for cell in dispatchers)
        self.counts_copies = any(cell.counts_copies for cell in dispatchers)
        layers = {layer.most_nodes for layer in sparse_layers(self)}
        self.most_nodes = layers.pop() if len(layers) == 1 else 0  # 0: tokens are not counted by nodes
        self.head = TiedHead(dims, model.domain_embeddings)
        self.token_losses = token_losses(dims)

    def construct(
        self, ids: Tensor, positions: Tensor, documents: Tensor, domain: Tensor, home: Tensor, seeds: Tensor
    ) -> Tuple[Tensor, List[Dict[str, Tensor]]]:
        context = self.batch_context(ids, positions, attention_mask(documents), domain, home, seeds)
        x, outputs = self.hidden_states(ids, domain, context)
        reports = []
        for output in outputs:
            if output["report"]:
                reports.append(output["report"])
        return self.head(x, self.embedding.word, domain), reports

    def batch_context(
        self, ids: Tensor, positions: Tensor, mask: Tensor, domain: Tensor, home: Tensor, seeds: Tensor
    ) -> BatchContext:
        """What all blocks read of a batch.

        Args:
            ids, positions: <int32>[B, S]. mask: see `BatchContext`.
            domain, home, seeds: <int32>[B], one a sequence.
        """
        length = ids.shape[1]
        tokens = {
            "ids": ids.reshape(-1),  # (T,) <- (B, S)
            "domain": per_token(domain, length),
            "home": per_token(home, length),
            "seed": token_seeds(seeds, length),
        }
        if self.routes_by_word:
            tokens["word"] = self.embedding.vectors(ids, domain)
        return {"mask": mask, "positions": positions, "seeds": seeds, "tokens": tokens}

    def hidden_states(
        self,
        ids: Tensor,
        domain: Tensor,
        context: BatchContext,
        caches: Optional[Sequence[KeyValueCache]] = None,
        dispatchers: Optional[Sequence[Dispatcher]] = None,
    ) -> Tuple[Tensor, List[BlockOutput]]:
        """-> <float32>[T, d], what the head scores; and what each block returns with it, the query layer last.

        Args:
            ids: <int32>[B, S]. domain: <int32>[B]. context: see `batch_context`.
            caches: one a block, see `Attention`; None: nothing is kept.
            dispatchers: one a block, in place of the sparse layers' own; None: their own.
        """
        x = self.embedding(ids, context["positions"], domain, context["seeds"])
        top = len(self.blocks)
        outputs = []
        for index, block in enumerate(self.blocks):
            cache = None if caches is None else caches[index]
            dispatcher = None if dispatchers is None else dispatchers[index]
            x, output = block(x, context, cache, dispatcher)
            outputs.append(output)
        x = self.final_norm(self.below_final_norm(x)) if self.norm_before_query else x
        cache = None if caches is None else caches[top]
        dispatcher = None if dispatchers is None else dispatchers[top]
        x, output = self.query_layer(x, context, cache, dispatcher)
        outputs.append(output)
        return x if self.norm_before_query else self.final_norm(self.below_final_norm(x)), outputs

    def all_blocks(self) -> List[Block]:
        """The blocks bottom up, the query layer last."""
        return [*self.blocks, self.query_layer]


def per_token(values: Tensor, length: int) -> Tensor:
    """<int32>[T] <- `values` <int32>[B]: each sequence's for all of its `length` tokens."""
    return ops.tile(values.expand_dims(1), (1, length)).reshape(-1)  # (T,) <- (B, S) <- (B, 1)


def token_seeds(seeds: Tensor, length: int) -> Tensor:
    """<int32>[T] <- `seeds` <int32>[B]: one a token, different within and between sequences of `length` tokens."""
    steps = ops.arange(0, length, 1, dtype=seeds.dtype) * 0x27D4EB2F
    return (seeds.expand_dims(1) + steps).reshape(-1)  # (T,) <- (B, S) <- (B, 1), (S,)


def sparse_layers(network: nn.Cell) -> List[MoEFeedForward]:
    """The sparse feed-forward layers, bottom up."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, MoEFeedForward)]
