"""Moving rows by index in both directions with gathers alone: a scatter-add in a gradient is slow on every backend."""

from typing import Tuple

from mindspore import Tensor, nn, ops


class PermuteRows(nn.Cell):
    """Copies rows to new places; places that nothing is sent to become 0.

    `source[i]` is the input row of output row i and `target` the inverse map; the masks are 0 where a row has no counterpart,
    with any valid index beside them. As no input row is used twice, the gradient is the same gather with the maps swapped.

    Inputs: rows <float>[N, d]; source <int32>[M]; source_mask <float32>[M, 1]; target <int32>[N]; target_mask <float32>[N, 1].
    Output: <float>[M, d].
    """

    def __init__(self) -> None:
        super().__init__()
        self.gather = ops.Gather()

    def construct(self, rows: Tensor, source: Tensor, source_mask: Tensor, target: Tensor, target_mask: Tensor) -> Tensor:
        return self.gather(rows, source, 0) * ops.cast(source_mask, rows.dtype)

    def bprop(self, rows: Tensor, source: Tensor, source_mask: Tensor, target: Tensor, target_mask: Tensor,
              out: Tensor, dout: Tensor) -> Tuple[Tensor, ...]:
        grad = self.gather(dout, target, 0) * ops.cast(target_mask, dout.dtype)
        return (grad, ops.zeros_like(source), ops.zeros_like(source_mask), ops.zeros_like(target), ops.zeros_like(target_mask))
