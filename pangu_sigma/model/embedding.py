"""Word and position embeddings, and the head tied to the word table."""

from mindspore import Tensor, nn, ops

from locmoe_ops.random import SeededDropout
from pangu_sigma.model.layers import constant
from pangu_sigma.model.shape import ModelShape


class Embedding(nn.Cell):
    """Word vector (shared, or one slot per domain) plus learned position vector, then dropout.

    Inputs: ids, positions <int32>[B, S]; domain, seeds <int32>[B]. Output: <float32>[T, d].
    """

    def __init__(self, shape: ModelShape, per_domain: bool) -> None:
        super().__init__()
        self.vocab_size = shape.vocab_size
        self.per_domain = per_domain
        slots = shape.domains if per_domain else 1
        self.word = constant((slots * shape.vocab_size, shape.hidden_size), 0.0, "word")
        self.position = constant((shape.sequence_length, shape.hidden_size), 0.0, "position")
        self.dropout = SeededDropout(shape.embedding_dropout, shape.sequence_length * shape.hidden_size, salt=1)

    def construct(self, ids: Tensor, positions: Tensor, domain: Tensor, seeds: Tensor) -> Tensor:
        return self.dropout(self.words(ids, domain) + ops.gather(self.position, positions.reshape(-1), 0), seeds)

    def words(self, ids: Tensor, domain: Tensor) -> Tensor:
        """Word vectors alone: <float32>[T, d] <- ids <int32>[B, S], domain <int32>[B]."""
        if self.per_domain:
            ids = ids + (domain * self.vocab_size).expand_dims(1)
        return ops.gather(self.word, ids.reshape(-1), 0)


class TiedHead(nn.Cell):
    """Scores of all words: product with the word table (of the row's domain, where slots differ), without bias.

    Inputs: x <float>[T, d]; word <float32>[slots * V, d]; domain <int32>[B]. Output: <compute_dtype>[T, V].
    """

    def __init__(self, shape: ModelShape, per_domain: bool) -> None:
        super().__init__()
        self.rows = shape.rows
        self.per_domain = per_domain
        self.table_shape = (-1, shape.vocab_size, shape.hidden_size)
        self.compute_dtype = shape.compute_dtype
        self.matmul = ops.MatMul(transpose_b=True)
        self.batch_matmul = ops.BatchMatMul(transpose_b=True)

    def construct(self, x: Tensor, word: Tensor, domain: Tensor) -> Tensor:
        x, word = ops.cast(x, self.compute_dtype), ops.cast(word, self.compute_dtype)
        if not self.per_domain:
            return self.matmul(x, word)
        tables = ops.gather(word.reshape(self.table_shape), domain, 0)  # (B, V, d)
        scores = self.batch_matmul(x.reshape(self.rows, -1, x.shape[-1]), tables)
        return scores.reshape(-1, scores.shape[-1])
