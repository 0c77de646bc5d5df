"""The small parts that every layer is made of: linear maps and normalisation, with parameters in float32."""

from typing import Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.tensor_parallel import marked


def constant(shape: tuple, value: float, name: str) -> Parameter:
    """A float32 parameter filled with `value`; `initialise` gives matrices their random values later."""
    return Parameter(Tensor(np.full(shape, value, np.float32)), name=name)


def split_constant(whole: Tuple[int, ...], value: float, name: str, part: Optional[ShardSpec]) -> Parameter:
    """`constant`, of which this rank holds `part` (None: all)."""
    return marked(constant(whole if part is None else part.shape_of(whole), value, name), part)


class AddBias(nn.Cell):
    """Adds a bias to every row. The gradient is a plain sum over rows, many times faster than BiasAdd's own on CPU.

    Inputs: x <float>[T, n]; bias <float>[n]. Output: <float>[T, n].
    """

    def __init__(self) -> None:
        super().__init__()
        self.add = ops.BiasAdd()
        self.sum = ops.ReduceSum()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.add(x, bias)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        return dout, self.sum(dout, 0)


class GradientHook(nn.Cell):
    """Where a map takes in its input and its weight: nothing happens. A distributed run may put something else here,
    which sends a weight's gradient on its way as soon as it is there (see `pangu_sigma.train.gradient_overlap`).
    """

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        return x, weight


class Linear(nn.Cell):
    """`x W^T + b` in `compute_dtype`, or without b.

    `residual` marks maps whose output is added to the residual stream. With `part`, this rank holds some of the outputs
    (axis 0 of W) or some of the inputs (axis 1); in the latter case `leave` sums over the tensor-parallel group, and b
    is added to the sum.

    Inputs: x <float>[T, in]. Output: <compute_dtype>[T, out]; with `part`, this rank's part of in or out.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        compute_dtype: dtype.Type = dtype.float32,
        residual: bool = False,
        has_bias: bool = True,
        part: Optional[ShardSpec] = None,
        leave: Optional[nn.Cell] = None,
    ) -> None:
        super().__init__()
        bias_part = part if part is not None and part.axis == 0 else None
        self.compute_dtype = compute_dtype
        self.residual = residual
        self.has_bias = has_bias
        self.weight = split_constant((out_size, in_size), 0.0, "weight", part)
        if has_bias:
            self.bias = split_constant((out_size,), 0.0, "bias", bias_part)
        self.leave = leave or nn.Identity()
        self.grad_hook = GradientHook()
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = AddBias()

    def construct(self, x: Tensor) -> Tensor:
        kind = self.compute_dtype
        x, weight = self.grad_hook(x, self.weight)
        y = self.leave(self.matmul(ops.cast(x, kind), ops.cast(weight, kind)))
        return self.add_bias(y, ops.cast(self.bias, kind)) if self.has_bias else y


class Normalise(nn.Cell):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over the last dimension, with a gradient made of plain sums,
    which on CPU take half the time of the fused kernel's.

    Inputs: x <float32>[T, d]; gamma, beta <float32>[d]. Outputs: as `ops.LayerNorm`; the first, the normalised rows, is
    the one to use.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon)
        self.sum = ops.ReduceSum()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.rsqrt = ops.Rsqrt()

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        return self.norm(x, gamma, beta)

    def bprop(
        self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tuple[Tensor, ...], dout: Tuple[Tensor, ...]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        # With h the normalised x and g = dy * gamma: dx = (g - mean(g) - h * mean(g * h)) / sqrt(variance + epsilon).
        # The variance is taken anew: the kernel's third output is the variance on CPU, but its reciprocal root
        # elsewhere.
        centred = x - out[1]
        scale = self.rsqrt(self.mean(centred * centred, -1) + self.epsilon)
        rows = centred * scale
        grad = dout[0] * gamma
        dx = (grad - self.mean(grad, -1) - rows * self.mean(grad * rows, -1)) * scale
        return dx, self.sum(dout[0] * rows, 0), self.sum(dout[0], 0)


class LayerNorm(nn.Cell):
    """Layer normalisation over the last dimension, always in float32.

    Inputs: x <float>[T, d]. Output: <float32>[T, d].
    """

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.gamma = constant((size,), 1.0, "gamma")
        self.beta = constant((size,), 0.0, "beta")
        self.norm = Normalise(epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(ops.cast(x, dtype.float32), self.gamma, self.beta)[0]
