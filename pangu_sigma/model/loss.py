"""Cross-entropy of next tokens. Shape legend: T tokens, V words."""

from typing import Tuple

from mindspore import Tensor, dtype, nn, ops


class TokenCrossEntropy(nn.Cell):
    """-log softmax(logits)[target] of every token, in float32 and without overflow.

    The probabilities are a second output so that the gradient, p - onehot(target), needs no second softmax.

    Inputs: logits <float32>[T, V]; targets <int32>[T]. Outputs: loss <float32>[T] in nats; probabilities <float32>[T, V].
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax(-1)
        self.argmax = ops.ArgMaxWithValue(axis=-1, keep_dims=True)

    def construct(self, logits: Tensor, targets: Tensor) -> Tuple[Tensor, Tensor]:
        probabilities = self.softmax(logits)
        best, peak = self.argmax(logits)
        # log p[target] = (z[target] - z[best]) + log p[best], and p[best] >= 1/V cannot underflow
        at_best = ops.gather_elements(probabilities, 1, ops.cast(best, dtype.int32))
        at_target = ops.gather_elements(logits, 1, targets.reshape(-1, 1))
        return (peak - at_target - ops.log(at_best)).reshape(-1), probabilities

    def bprop(self, logits: Tensor, targets: Tensor, out: Tuple[Tensor, Tensor],
              dout: Tuple[Tensor, Tensor]) -> Tuple[Tensor, Tensor]:
        scale = dout[0]
        rows = ops.arange(0, targets.shape[0], 1, dtype=dtype.int32).reshape(-1, 1)
        index = ops.concat((rows, targets.reshape(-1, 1)), 1)
        grad = ops.tensor_scatter_sub(out[1] * scale.reshape(-1, 1), index, scale)
        return grad, ops.zeros_like(targets)
