"""The small parts that every layer is made of: linear maps and normalisation, with parameters in float32.

Shape legend: T tokens, d hidden size, n features.
"""

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.recompute import BackwardPart, ForwardPart, OwnGradient
from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.tensor_parallel import TensorGroup, marked


def constant(shape: Tuple[int, ...], value: float, name: str, part: Optional[ShardSpec] = None) -> Parameter:
    """A float32 parameter filled with one value; `initialise` gives matrices their random values later.

    Args:
        shape: of the whole parameter. value: what it is filled with. name: its name within the Cell.
        part: what of it this rank holds; None: all.
    """
    own = shape if part is None else part.shape_of(shape)
    return marked(Parameter(Tensor(np.full(own, value, np.float32)), name=name), part)


class AddBias(nn.Cell):
    """Adds a bias to every row. The gradient is a plain sum over rows, many times as fast as BiasAdd's own on CPU.

    Inputs: x <float>[T, n]; bias <float>[n]. Output: <float>[T, n].
    """

    def __init__(self) -> None:
        super().__init__()
        self.add = ops.BiasAdd()
        self.sum = ops.ReduceSum()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.add(x, bias)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        """The gradients of `x` and `bias` from that of `out`, `dout`."""
        return dout, self.sum(dout, 0)


class GradientHook(nn.Cell):
    """Where a linear map reads its input and its weight: nothing happens. A distributed run may put another Cell here,
    which starts to reduce a weight's gradient as soon as it is there (see `pangu_sigma.train.gradient_overlap`).

    Inputs: x <float>[T, n]; weight. Outputs: the same.
    """

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        return x, weight


@dataclass(frozen=True)
class LinearSharding:
    """How a tensor-parallel group shares out a linear map.

    Attributes:
        part: this rank's part of the weight [out, in]; None: all of it.
        reduce_out: the sum over the group, where the parts are of the inputs; None: nothing to sum.
    """

    part: Optional[ShardSpec] = None
    reduce_out: Optional[nn.Cell] = None


def column_parallel(tensor: TensorGroup) -> LinearSharding:
    """Each rank of `tensor` has some of the outputs, and their part of the bias."""
    return LinearSharding(tensor.slice(0))


def row_parallel(tensor: TensorGroup, tag: str) -> LinearSharding:
    """Each rank of `tensor` has some of the inputs; `tag` names the sum over the group, to which the bias is added."""
    return LinearSharding(tensor.slice(1), tensor.reduce_out(tag))


class Linear(nn.Cell):
    """`x W^T + b` in `compute_dtype`, or without b. `read_weight` and `read_bias` read the parameters: as they are,
    unless a training run puts copies in their place (see `pangu_sigma.train.half_copies`).

    Args:
        in_size, out_size: features of the whole map.
        compute_dtype: of the product; parameters stay float32.
        residual: marks maps whose output is added to the residual stream.
        has_bias: whether there is b.
        sharding: this rank's part of the map in a tensor-parallel group.

    Inputs: x <float>[T, in]. Output: <compute_dtype>[T, out]; this rank's part of in or out, where they are sharded.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        compute_dtype: dtype.Type = dtype.float32,
        residual: bool = False,
        has_bias: bool = True,
        sharding: LinearSharding = LinearSharding(),
    ) -> None:
        super().__init__()
        part = sharding.part
        self.compute_dtype = compute_dtype
        self.residual = residual
        self.has_bias = has_bias
        self.weight = constant((out_size, in_size), 0.0, "weight", part)
        if has_bias:
            self.bias = constant((out_size,), 0.0, "bias", part if part is not None and part.axis == 0 else None)
        self.read_weight, self.read_bias = nn.Identity(), nn.Identity()
        self.reduce_out = sharding.reduce_out or nn.Identity()
        self.grad_hook = GradientHook()
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = AddBias()

    def construct(self, x: Tensor) -> Tensor:
        kind = self.compute_dtype
        x, weight = self.grad_hook(x, self.read_weight(self.weight))
        y = self.reduce_out(self.matmul(ops.cast(x, kind), ops.cast(weight, kind)))
        return self.add_bias(y, ops.cast(self.read_bias(self.bias), kind)) if self.has_bias else y


class Normalise(OwnGradient):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over the last dimension, with a gradient made of plain sums,
    which on CPU take half the time of the fused kernel's.

    Args:
        epsilon: added to the variance.

    Inputs: x <float32>[T, d]; gamma, beta <float32>[d]. Outputs: as `ops.LayerNorm`; the first, the normalised rows, is
    the one to use.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.norm = ForwardPart(ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon))
        self.backward = _NormaliseBackward(epsilon)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        return self.norm(x, gamma, beta)

    def bprop(
        self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tuple[Tensor, ...], dout: Tuple[Tensor, ...]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """The gradients of `x`, `gamma` and `beta` from that of the first of `out`, `dout[0]`."""
        return self.backward(x, gamma, out[1], dout[0])


class _NormaliseBackward(BackwardPart):
    """The gradients of `Normalise`.

    Args:
        epsilon: as there.

    Inputs: x <float32>[T, d]; gamma <float32>[d]; mean <float32>[T, 1]; dout <float32>[T, d]. Outputs: gradients of x,
    gamma and beta.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.sum = ops.ReduceSum()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.rsqrt = ops.Rsqrt()

    def construct(self, x: Tensor, gamma: Tensor, mean: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        x = ops.depend(x, dout)  # not before the backward pass has come this far, however early x is there
        # With h the normalised x and g = dy * gamma: dx = (g - mean(g) - h * mean(g * h)) / sqrt(variance + epsilon).
        # The variance is taken anew: the kernel's third output is the variance on CPU, but its reciprocal root
        # elsewhere.
        centred = x - mean
        scale = self.rsqrt(self.mean(centred * centred, -1) + self.epsilon)
        rows = centred * scale
        grad = dout * gamma
        dx = (grad - self.mean(grad, -1) - rows * self.mean(grad * rows, -1)) * scale
        return dx, self.sum(dout * rows, 0), self.sum(dout, 0)


class LayerNorm(nn.Cell):
    """Layer normalisation over the last dimension, always in float32.

    Args:
        size: d. epsilon: added to the variance.

    Inputs: x <float>[T, d]. Output: <float32>[T, d].
    """

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.gamma = constant((size,), 1.0, "gamma")
        self.beta = constant((size,), 0.0, "beta")
        self.norm = Normalise(epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(ops.cast(x, dtype.float32), self.gamma, self.beta)[0]
