"""The small parts that every layer is made of: linear maps and normalisation, with parameters in float32.

Shape legend: T tokens, d hidden size, n features.
"""

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.kernels import CPU, KernelSet
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


class GradientHook(nn.Cell):
    """Where a linear map reads its input and its weight: nothing happens. A distributed run may put another Cell here,
    which starts to reduce a weight's gradient as soon as it is there (see `pangu_sigma.train.gradient_overlap`).

    Inputs: x <float>[T, n]; weight. Outputs: the same.
    """

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        return x, weight


@dataclass(frozen=True)
class Arithmetic:
    """How a linear map computes.

    Attributes:
        compute_dtype: of the product; parameters stay float32. kernels: forms of the operations by device.
    """

    compute_dtype: dtype.Type = dtype.float32
    kernels: KernelSet = CPU


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
    """`x W^T + b` in the compute type, or without b. In graphs compiled for Ascend that is one operator where no sum
    over ranks stands between product and bias. `read_weight` and `read_bias` read the parameters: as they are, unless a
    training run puts copies in their place (see `pangu_sigma.train.half_copies`).

    Args:
        in_size, out_size: features of the whole map.
        arithmetic: type and forms of its operations.
        residual: marks maps whose output is added to the residual stream.
        has_bias: whether there is b.
        sharding: this rank's part of the map in a tensor-parallel group.

    Inputs: x <float>[T, in]. Output: <compute_dtype>[T, out]; this rank's part of in or out, where they are sharded.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        arithmetic: Arithmetic = Arithmetic(),
        residual: bool = False,
        has_bias: bool = True,
        sharding: LinearSharding = LinearSharding(),
    ) -> None:
        super().__init__()
        part = sharding.part
        self.compute_dtype = arithmetic.compute_dtype
        self.residual = residual
        self.has_bias = has_bias
        self.weight = constant((out_size, in_size), 0.0, "weight", part)
        if has_bias:
            self.bias = constant((out_size,), 0.0, "bias", part if part is not None and part.axis == 0 else None)
        self.read_weight, self.read_bias = nn.Identity(), nn.Identity()
        self.grad_hook = GradientHook()
        self.sums = part is not None and sharding.reduce_out is not None
        self.reduce_out = sharding.reduce_out or nn.Identity()
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = arithmetic.kernels.add_bias()
        self.product_and_bias = arithmetic.kernels.linear()

    def construct(self, x: Tensor) -> Tensor:
        kind = self.compute_dtype
        x, weight = self.grad_hook(x, self.read_weight(self.weight))
        x, weight = ops.cast(x, kind), ops.cast(weight, kind)
        if not self.has_bias:
            return self.reduce_out(self.matmul(x, weight))
        bias = ops.cast(self.read_bias(self.bias), kind)
        if not self.sums:
            return self.product_and_bias(x, weight, bias)
        return self.add_bias(self.reduce_out(self.matmul(x, weight)), bias)


class LayerNorm(nn.Cell):
    """Layer normalisation over the last dimension, always in float32.

    Args:
        size: d. epsilon: added to the variance. kernels: forms of the operations by device.

    Inputs: x <float>[T, d]. Output: <float32>[T, d].
    """

    def __init__(self, size: int, epsilon: float, kernels: KernelSet = CPU) -> None:
        super().__init__()
        self.gamma = constant((size,), 1.0, "gamma")
        self.beta = constant((size,), 0.0, "beta")
        self.norm = kernels.normalise(epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(ops.cast(x, dtype.float32), self.gamma, self.beta)[0]
