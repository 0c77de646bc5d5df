"""Ascend's fused kernels behind the interfaces of what they replace. They compile anywhere, and would run on
Ascend only, where none was tried.

Gradients are MindSpore's own for these operators.

Shape legend: L experts of this rank, s slots of each, R rows of all of them, a and b features, T tokens, k choices a
token, d hidden size.
"""

from typing import Tuple

from mindspore import Tensor, dtype, nn, ops
from mindspore.ops.auto_generate import GroupedMatmulV4, MoeTokenPermute, MoeTokenUnpermute

# Of GroupedMatmul: one tensor comes out; groups are of rows; they are given by their sizes.
_ONE_OUTPUT, _BY_ROWS, _SIZES = 3, 0, 1
_NO_ACTIVATION = 0


class GroupedMatmul(nn.Cell):
    """The kernel by itself: of the rows of x the first ones are multiplied by the first matrix, the next ones by the
    second. Rows beyond the sum of sizes are left as their memory was found (CANN, GroupedMatmul: groupList), in the
    result and in the gradient.

    Inputs: x <float>[R, a]; weight <float>[L, a, b]; sizes <int64>[L]. Output: <float>[R, b].
    """

    def __init__(self) -> None:
        super().__init__()
        self.product = GroupedMatmulV4()

    def construct(self, x: Tensor, weight: Tensor, sizes: Tensor) -> Tensor:
        y: Tensor = self.product(
            [x],
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
        return y


class GroupedProduct(nn.Cell):
    """`ops.BatchMatMul` as one GroupedMatmul: each matrix multiplies as many rows.

    Inputs: x <float>[L, s, a]; weight <float>[L, a, b]. Output: <float>[L, s, b].
    """

    def __init__(self) -> None:
        super().__init__()
        self.product = GroupedMatmul()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        groups, rows, width = x.shape
        sizes = ops.full((groups,), rows, dtype=dtype.int64)
        y = self.product(x.reshape(-1, width), weight, sizes)  # (L * s, b) <- (L * s, a) <- (L, s, a)
        return y.reshape(groups, rows, -1)  # (L, s, b) <- (L * s, b)


class GroupedRows(nn.Cell):
    """One GroupedMatmul over as many rows as each expert has, with zeros for rows that are nobody's: for these the
    kernel leaves what it finds, NaN among it, hence a mask on the way out and, for the gradient, on the way in. It
    chooses, since the gradient of `masked_fill` multiplies in MindSpore 2.7, and 0 times NaN is NaN.

    Inputs: x <float>[R, a], one expert's rows behind another's; weight <float>[L, a, b]; sizes <int64>[L], rows of
    each; nobodys <bool>[R, 1]. Output: <float>[R, b].
    """

    def __init__(self) -> None:
        super().__init__()
        self.product = GroupedMatmul()

    def construct(self, x: Tensor, weight: Tensor, sizes: Tensor, nobodys: Tensor) -> Tensor:
        y = self.product(ops.where(nobodys, 0.0, x), weight, sizes)
        return ops.where(nobodys, 0.0, y)


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
