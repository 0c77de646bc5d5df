"""Cross-entropy of next tokens.

Shape legend: T tokens, V words of the vocabulary, P ranks of the tensor-parallel group, w = V / P words of a rank.
"""

from typing import Tuple

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.functions import log
from locmoe_ops.tensor_parallel import TensorGroup
from pangu_sigma.model.dims import ModelDims

_scatter_add = ops.TensorScatterAdd()  # of the functions both this and tensor_scatter_sub are deprecated


def token_losses(shape: ModelDims) -> nn.Cell:
    """The cross-entropy for a network of this `shape`: `TokenCrossEntropy`, or `SplitCrossEntropy` where ranks have
    words of their own.
    """
    return TokenCrossEntropy() if shape.tensor.size == 1 else SplitCrossEntropy(shape.tensor, shape.local_vocab_size)


class TokenCrossEntropy(nn.Cell):
    """-log softmax(logits)[target] of every token, in float32 and without overflow.

    The probabilities are a second output so that the gradient, p - onehot(target), needs no second softmax.

    Inputs: logits <float32>[T, V]; targets <int32>[T].
    Outputs: loss <float32>[T] in nats; probabilities <float32>[T, V].
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax(-1)
        self.argmax = ops.ArgMaxWithValue(axis=-1, keep_dims=True)

    def construct(self, logits: Tensor, targets: Tensor) -> Tuple[Tensor, Tensor]:
        probabilities = self.softmax(logits)
        best, peak = self.argmax(logits)
        # log p[target] = (z[target] - z[best]) + log p[best], and p[best] >= 1/V cannot underflow
        at_best = ops.gather_elements(probabilities, 1, ops.cast(best, dtype.int32))  # (T, 1) <- (T, V)
        at_target = ops.gather_elements(logits, 1, targets.reshape(-1, 1))  # (T, 1) <- (T, V)
        return (peak - at_target - log(at_best)).reshape(-1), probabilities  # (T,) <- (T, 1)

    def bprop(
        self, logits: Tensor, targets: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Gradients of `logits` and `targets` (zeros) from `out` and `dout`; the probabilities pass none on."""
        scale = dout[0]
        rows = ops.arange(0, targets.shape[0], 1, dtype=dtype.int32).reshape(-1, 1)  # (T, 1) <- (T,)
        index = ops.concat((rows, targets.reshape(-1, 1)), 1)  # (T, 2) <- (T, 1), (T, 1)
        grad = _scatter_add(out[1] * scale.reshape(-1, 1), index, -scale)  # scale (T, 1) <- (T,)
        return grad, ops.zeros_like(targets)


class SplitCrossEntropy(nn.Cell):
    """`TokenCrossEntropy` of logits whose words are split over a tensor-parallel group; no logits are exchanged.

    1. Softmax over this rank's words; a token's peak logit m, its sum of exp(z - m), its target's logit if the word is
       here.
    2. Those three numbers of all ranks, gathered.
    3. With M the largest m: loss = (M - z[target]) + log(sum over ranks of sum * exp(m - M)); this rank's probabilities
       likewise.

    All ranks get the same losses, and the gradient needs no exchange: a rank's logits are seen by its own probabilities
    alone.

    Args:
        tensor: the group, and this rank's place in it.
        local_vocab_size: w; word i belongs to rank i // w.

    Inputs: logits <float32>[T, w]; targets <int32>[T].
    Outputs: loss <float32>[T] in nats; probabilities <float32>[T, w].
    """

    def __init__(self, tensor: TensorGroup, local_vocab_size: int) -> None:
        super().__init__()
        self.local_vocab_size, self.shard, self.num_shards = local_vocab_size, tensor.index, tensor.size
        self.gather = tensor.all_gather("tensor/cross-entropy")
        self.highest = ops.ReduceMax()
        self.softmax = ops.Softmax(-1)
        self.argmax = ops.ArgMaxWithValue(axis=-1, keep_dims=True)

    def construct(self, logits: Tensor, targets: Tensor) -> Tuple[Tensor, Tensor]:
        probabilities = self.softmax(logits)
        best, peak = self.argmax(logits)
        peak = peak.reshape(-1)  # (T,) <- (T, 1)
        # The largest of the own probabilities is 1 / sum of exp(z - m), at least 1/V: (T,) <- (T, w)
        total = 1.0 / ops.gather_elements(probabilities, 1, ops.cast(best, dtype.int32)).reshape(-1)
        place, here = self._place(targets)
        at_target = ops.gather_elements(logits, 1, place.reshape(-1, 1)).reshape(-1) * here  # (T,) <- (T, w)
        numbers = self.gather(ops.stack((peak, total, at_target)))
        numbers = numbers.reshape(self.num_shards, 3, -1)  # (P, 3, T) <- (P * 3, T)
        peaks, totals, at_targets = ops.unstack(numbers, 1)  # (P, T) each
        highest = self.highest(peaks, 0)
        whole = (totals * ops.exp(peaks - highest)).sum(0)
        share = total * ops.exp(peak - highest) / whole  # of the probability, this rank's words
        losses = (highest - at_targets.sum(0)) + log(whole)
        return losses, probabilities * share.reshape(-1, 1)  # share (T, 1) <- (T,)

    def bprop(
        self, logits: Tensor, targets: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Gradients of `logits` and `targets` (zeros) from `out` and `dout`; the probabilities pass none on."""
        scale = dout[0]
        place, here = self._place(targets)
        rows = ops.arange(0, targets.shape[0], 1, dtype=dtype.int32).reshape(-1, 1)  # (T, 1) <- (T,)
        index = ops.concat((rows, place.reshape(-1, 1)), 1)  # (T, 2) <- (T, 1), (T, 1)
        grad = _scatter_add(out[1] * scale.reshape(-1, 1), index, -(scale * here))  # scale (T, 1) <- (T,)
        return grad, ops.zeros_like(targets)

    def _place(self, targets: Tensor) -> Tuple[Tensor, Tensor]:
        """Column of a target <int32>[T], and 1 where it is one of this rank's, 0 elsewhere, <float32>[T]."""
        here = ops.equal(ops.floor_div(targets, self.local_vocab_size), self.shard)
        return ops.floor_mod(targets, self.local_vocab_size), ops.cast(here, dtype.float32)
