"""Word and position embeddings, and the head tied to the word table.

In a tensor-parallel group each rank has V / P words: their rows of every slot of the table, and their scores.
"""

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.random import SeededDropout
from pangu_sigma.model.dims import ModelDims
from pangu_sigma.model.layers import constant, split_constant


class Embedding(nn.Cell):
    """Word vector (shared, or one slot per domain) plus learned position vector, then dropout.

    Inputs: ids, positions <int32>[B, S]; domain, seeds <int32>[B]. Output: <float32>[T, d].
    """

    def __init__(self, shape: ModelDims, per_domain: bool) -> None:
        super().__init__()
        self.tensor, self.words = shape.tensor.size, shape.local_vocab_size
        self.part = shape.tensor.index
        self.per_domain = per_domain
        slots = shape.domains if per_domain else 1
        self.word = split_constant(
            (slots * shape.vocab_size, shape.hidden_size), 0.0, "word", shape.tensor.slice(0, slots)
        )
        self.leave = shape.tensor.reduce_out("tensor/embedding")
        self.position = constant((shape.sequence_length, shape.hidden_size), 0.0, "position")
        self.dropout = SeededDropout(shape.embedding_dropout, shape.sequence_length * shape.hidden_size, salt=1)

    def construct(self, ids: Tensor, positions: Tensor, domain: Tensor, seeds: Tensor) -> Tensor:
        x = self.vectors(ids, domain) + ops.gather(self.position, positions.reshape(-1), 0)
        return self.dropout(x, seeds)

    def vectors(self, ids: Tensor, domain: Tensor) -> Tensor:
        """Word vectors alone: <float32>[T, d] <- ids <int32>[B, S], domain <int32>[B]."""
        row = ids if self.tensor == 1 else ops.floor_mod(ids, self.words)  # a valid row whoever has the word
        if self.per_domain:
            row = row + (domain * self.words).expand_dims(1)
        found = ops.gather(self.word, row.reshape(-1), 0)
        if self.tensor == 1:
            return found
        own = ops.equal(ops.floor_div(ids, self.words), self.part)
        return self.leave(found * ops.cast(own, dtype.float32).reshape(-1, 1))


class TiedHead(nn.Cell):
    """Scores of all words: product with the word table (of the row's domain, where slots differ), without bias.

    Inputs: x <float>[T, d]; word <float32>[slots * V, d]; domain <int32>[B]. Output: <compute_dtype>[T, V]. In a
    tensor-parallel group V are this rank's words.
    """

    def __init__(self, shape: ModelDims, per_domain: bool) -> None:
        super().__init__()
        self.rows = shape.rows
        self.per_domain = per_domain
        self.table_shape = (-1, shape.local_vocab_size, shape.hidden_size)
        self.enter = shape.tensor.copy_in("tensor/head")
        self.compute_dtype = shape.compute_dtype
        self.matmul = ops.MatMul(transpose_b=True)
        self.batch_matmul = ops.BatchMatMul(transpose_b=True)

    def construct(self, x: Tensor, word: Tensor, domain: Tensor) -> Tensor:
        x, word = ops.cast(self.enter(x), self.compute_dtype), ops.cast(word, self.compute_dtype)
        if not self.per_domain:
            return self.matmul(x, word)
        tables = ops.gather(word.reshape(self.table_shape), domain, 0)  # (B, V, d)
        scores = self.batch_matmul(x.reshape(self.rows, -1, x.shape[-1]), tables)
        return scores.reshape(-1, scores.shape[-1])
