"""Ascend's fused kernels behind the interfaces of what they replace. They compile anywhere and run on Ascend only.

Gradients are MindSpore's own for these operators.

Shape legend: L experts of this rank, s slots of each, a and b features, T tokens, k choices a token, d hidden size.
"""

from typing import Tuple

from mindspore import Tensor, dtype, nn, ops
from mindspore.ops.auto_generate import GroupedMatmulV4, MoeTokenPermute, MoeTokenUnpermute

# Of GroupedMatmul: one tensor comes out; groups are of rows; they are given by their sizes.
_ONE_OUTPUT, _BY_ROWS, _SIZES = 3, 0, 1
_NO_ACTIVATION = 0


class GroupedProduct(nn.Cell):
    """`ops.BatchMatMul` as one GroupedMatmul: each matrix multiplies as many rows.

    Inputs: x <float>[L, s, a]; weight <float>[L, a, b]. Output: <float>[L, s, b].
    """

    def __init__(self) -> None:
        super().__init__()
        self.product = GroupedMatmulV4()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        groups, rows, width = x.shape
        sizes = ops.full((groups,), rows, dtype=dtype.int64)
        rows_of_all = x.reshape(-1, width)  # (L * s, a) <- (L, s, a)
        y = self.product(
            [rows_of_all],
            [weight],
            None,
            None,
            None,
            None,
            None,
            None,
            sizes,
            None,
            None,
            None,
            _ONE_OUTPUT,
            _BY_ROWS,
            _SIZES,
            _NO_ACTIVATION,
        )[0]
        return y.reshape(groups, rows, -1)  # (L, s, b) <- (L * s, b)


class TokenSort(nn.Cell):
    """MoeTokenPermute: a copy of each token for each of its k places, ordered by place; of one place the earlier token
    first.

    Inputs: x <float>[T, d]; place <int32>[T, k]. Outputs: <float>[k * T, d]; what `TokenUnsort` needs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.permute = MoeTokenPermute()

    def construct(self, x: Tensor, place: Tensor) -> Tuple[Tensor, Tensor]:
        return self.permute(x, place)


class TokenUnsort(nn.Cell):
    """MoeTokenUnpermute: back to tokens, each the sum of its k rows, scaled.

    Inputs: rows <float>[k * T, d]; order, of `TokenSort`; scale <float>[T, k]. Output: <float>[T, d].
    """

    def __init__(self) -> None:
        super().__init__()
        self.unpermute = MoeTokenUnpermute()

    def construct(self, rows: Tensor, order: Tensor, scale: Tensor) -> Tensor:
        return self.unpermute(rows, order, scale)
