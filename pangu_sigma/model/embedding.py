"""Word and position embeddings, and the head tied to the word table.

Shape legend: B sequences, S positions, T = B * S tokens, d hidden size, V words, D domains.

In a tensor-parallel group each rank has V / P words: their rows of every slot of the table, and their scores.
"""

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.random import SeededDropout
from pangu_sigma.model.dims import ModelDims
from pangu_sigma.model.layers import constant


class Embedding(nn.Cell):
    """Word vector (shared, or one slot per domain) plus learned position vector, then dropout.

    Word vectors are rounded to the matmuls' type, in which a tensor-parallel group sums them, and at every degree, so
    that all have the same numbers. Their gradients are added up over tokens in float32.

    Args:
        dims: sizes. per_domain: whether every domain has its own word vectors.

    Inputs: ids, positions <int32>[B, S]; domain, seeds <int32>[B]. Output: <float32>[T, d].
    """

    def __init__(self, dims: ModelDims, per_domain: bool) -> None:
        super().__init__()
        self.tensor, self.part = dims.tensor.size, dims.tensor.index
        self.vocab_size = dims.local_vocab_size
        self.compute_dtype = dims.compute_dtype
        self.per_domain = per_domain
        slots = dims.domains if per_domain else 1
        self.word = constant((slots * dims.vocab_size, dims.hidden_size), 0.0, "word", dims.tensor.slice(0, slots))
        self.reduce_out = dims.tensor.reduce_out("tensor/embedding")
        self.position = constant((dims.sequence_length, dims.hidden_size), 0.0, "position")
        self.dropout = SeededDropout(dims.embedding_dropout, dims.sequence_length * dims.hidden_size, salt=1)

    def construct(self, ids: Tensor, positions: Tensor, domain: Tensor, seeds: Tensor) -> Tensor:
        position = ops.gather(self.position, positions.reshape(-1), 0)  # (T, d) <- (S, d), (B, S)
        return self.dropout(self.vectors(ids, domain) + position, seeds)

    def vectors(self, ids: Tensor, domain: Tensor) -> Tensor:
        """Word vectors alone: <float32>[T, d] <- ids <int32>[B, S], domain <int32>[B]."""
        row = ids if self.tensor == 1 else ops.floor_mod(ids, self.vocab_size)  # a valid row whoever has the word
        if self.per_domain:
            row = row + (domain * self.vocab_size).expand_dims(1)  # (B, S) <- (B, S), (B, 1)
        found = ops.gather(self.word, row.reshape(-1), 0)  # (T, d) <- (slots * V, d), (B, S)
        if self.tensor > 1:
            own = ops.equal(ops.floor_div(ids, self.vocab_size), self.part)  # (B, S)
            found = found * ops.cast(own, dtype.float32).reshape(-1, 1)  # (T, 1) <- (B, S)
        return ops.cast(self.reduce_out(ops.cast(found, self.compute_dtype)), dtype.float32)


class TiedHead(nn.Cell):
    """Scores of all words: product with the word table (of the row's domain, where slots differ), without bias.
    `read_word` reads the table, as `Linear.read_weight` its weight.

    Args:
        dims: sizes. per_domain: whether every domain has its own word vectors.

    Inputs: x <float>[T, d]; word <float32>[slots * V, d]; domain <int32>[B]. Output: <compute_dtype>[T, V]. In a
    tensor-parallel group V are this rank's words.
    """

    def __init__(self, dims: ModelDims, per_domain: bool) -> None:
        super().__init__()
        self.per_domain = per_domain
        self.table_shape = (-1, dims.local_vocab_size, dims.hidden_size)
        self.copy_in = dims.tensor.copy_in("tensor/head")
        self.compute_dtype = dims.compute_dtype
        self.read_word = nn.Identity()
        self.matmul = ops.MatMul(transpose_b=True)
        self.batch_matmul = ops.BatchMatMul(transpose_b=True)

    def construct(self, x: Tensor, word: Tensor, domain: Tensor) -> Tensor:
        x = self.copy_in(ops.cast(x, self.compute_dtype))
        word = ops.cast(self.read_word(word), self.compute_dtype)
        if not self.per_domain:
            return self.matmul(x, word)
        tables = ops.gather(word.reshape(self.table_shape), domain, 0)  # (B, V, d) <- (D, V, d) <- (D * V, d)
        rows = x.reshape(domain.shape[0], -1, x.shape[-1])  # (B, S, d) <- (T, d)
        scores = self.batch_matmul(rows, tables)  # (B, S, V)
        return scores.reshape(-1, scores.shape[-1])  # (T, V) <- (B, S, V)
