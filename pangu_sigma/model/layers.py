"""The small parts that every layer is made of: linear maps and normalisation, with parameters in float32."""

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops


def constant(shape: tuple, value: float, name: str) -> Parameter:
    """A float32 parameter filled with `value`; `initialise` gives matrices their random values later."""
    return Parameter(Tensor(np.full(shape, value, np.float32)), name=name)


class Linear(nn.Cell):
    """`x W^T + b` in `compute_dtype`.

    Inputs: x <float>[T, in]. Output: <compute_dtype>[T, out]. `residual` marks maps whose output is added to the residual stream.
    """

    def __init__(self, in_size: int, out_size: int, compute_dtype: dtype.Type = dtype.float32, residual: bool = False) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.residual = residual
        self.weight = constant((out_size, in_size), 0.0, "weight")
        self.bias = constant((out_size,), 0.0, "bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = ops.BiasAdd()

    def construct(self, x: Tensor) -> Tensor:
        kind = self.compute_dtype
        return self.add_bias(self.matmul(ops.cast(x, kind), ops.cast(self.weight, kind)), ops.cast(self.bias, kind))


class LayerNorm(nn.Cell):
    """Layer normalisation over the last dimension, always in float32.

    Inputs: x <float>[T, d]. Output: <float32>[T, d].
    """

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.gamma = constant((size,), 1.0, "gamma")
        self.beta = constant((size,), 0.0, "beta")
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(ops.cast(x, dtype.float32), self.gamma, self.beta)[0]
