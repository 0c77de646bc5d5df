"""Elementary operations by device: the one place where a Cell is written in two forms.

MindSpore's CPU kernels and its Ascend kernels should be fast at different things. On CPU some fused gradients are many
times as slow as the plain sums that they consist of (measured); on Ascend, kernel by kernel, every operator is a launch
of its own, and a fused one is a single launch (counted in compiled graphs). So each operation has a form `CPU`, whose
gradients are written out, and a form `ASCEND`, which is MindSpore's own operator with MindSpore's own gradient. Both
compute the same function, to rounding.

The forms for Ascend compile anywhere. None was run on a device.

Where layers are recomputed, a form whose own gradient reads what the forward pass has made is an `OwnGradient`. A form
with MindSpore's gradient needs nothing, nor does one whose gradient reads the output's gradient alone.

Shape legend: N rows, n features, L experts of this rank, s slots of each.
"""

import math
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Tuple

from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import AddExt, Dense, GeluExt, LayerNormExt, LayerNormGradExt

from locmoe_ops.errors import InputError
from locmoe_ops.recompute import BackwardPart, ForwardPart, OwnGradient


class AddBias(nn.Cell):
    """Adds a bias to every row. The gradient is a plain sum over rows, many times as fast as BiasAdd's own on CPU.

    Inputs: x <float>[N, n]; bias <float>[n]. Output: <float>[N, n].
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


class AddBatchBias(nn.Cell):
    """Adds each expert's bias to its rows. The gradient sums over rows by a product with ones, on CPU ten times as fast
    as ReduceSum over a middle dimension.

    Args:
        terms: the result is one of this many terms of a sum, each of which holds an equal part of the bias; as the
            gradient of a sum is that of each term, each has the bias's whole gradient nevertheless.

    Inputs: x <float>[L, s, n]; bias <float>[L, 1, n]. Output: <float>[L, s, n].
    """

    def __init__(self, terms: int = 1) -> None:
        super().__init__()
        self.terms = terms
        self.matmul = ops.BatchMatMul()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias if self.terms == 1 else x + bias * (1.0 / self.terms)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        """The gradients of `x` and `bias` from that of `out`, `dout`."""
        return dout, self.matmul(
            ops.ones((x.shape[0], 1, x.shape[1]), dout.dtype), dout
        )  # (L, 1, n) <- (L, 1, s), (L, s, n)


class SummedBatchBias(AddBatchBias):
    """`AddBatchBias` as one operator, and the gradient as one sum.

    Args:
        terms: as `AddBatchBias`.

    Inputs and output: as `AddBatchBias`.
    """

    def __init__(self, terms: int = 1) -> None:
        super().__init__(terms)
        self.add = AddExt()
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias if self.terms == 1 else self.add(x, bias, 1.0 / self.terms)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        """The gradients of `x` and `bias` from that of `out`, `dout`."""
        return dout, self.sum(dout, 1)


class MatMulAddBias(nn.Cell):
    """`x W^T + b`, as a product and an addition.

    Args:
        add_bias: the addition.

    Inputs: x <float>[N, m]; weight <float>[n, m]; bias <float>[n]. Output: <float>[N, n].
    """

    def __init__(self, add_bias: nn.Cell) -> None:
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = add_bias

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.add_bias(self.matmul(x, weight), bias)


class DenseProduct(nn.Cell):
    """`MatMulAddBias` as one operator.

    Inputs and output: as `MatMulAddBias`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dense = Dense()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.dense(x, weight, bias)


class Normalise(OwnGradient):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over the last dimension, with a gradient made of plain sums,
    which on CPU take half the time of the fused kernel's.

    Args:
        epsilon: added to the variance.

    Inputs: x <float32>[N, n]; gamma, beta <float32>[n]. Outputs: as `ops.LayerNorm`; the first, the normalised rows, is
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

    Inputs: x <float32>[N, n]; gamma <float32>[n]; mean <float32>[N, 1]; dout <float32>[N, n]. Outputs: gradients of x,
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


class FusedNormalise(OwnGradient):
    """`Normalise` as one operator, and its gradient as another, after the first once more: were its mean and deviation
    read from the forward pass, MindSpore would make a cycle of a graph in which that is computed anew.

    Args:
        epsilon: added to the variance.

    Inputs and outputs: as `Normalise`, but for the third output.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.norm = ForwardPart(LayerNormExt())
        self.backward = _FusedNormaliseBackward(epsilon)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        return self.norm(x, gamma.shape, gamma, beta, self.epsilon)

    def bprop(
        self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tuple[Tensor, ...], dout: Tuple[Tensor, ...]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """The gradients of `x`, `gamma` and `beta` from that of the first of `out`, `dout[0]`."""
        return self.backward(x, gamma, beta, dout[0])


class _FusedNormaliseBackward(BackwardPart):
    """The gradients of `FusedNormalise`.

    Args:
        epsilon: as there.

    Inputs: x <float32>[N, n]; gamma, beta <float32>[n]; dout <float32>[N, n]. Outputs: gradients of x, gamma and beta.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.norm, self.gradient = LayerNormExt(), LayerNormGradExt()

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        x = ops.depend(x, dout)  # see `Normalise`
        _, mean, scale = self.norm(x, gamma.shape, gamma, beta, self.epsilon)
        return self.gradient(dout, x, gamma.shape, mean, scale, gamma, beta)


class SoftmaxRows(OwnGradient):
    """Softmax over the last of two dimensions. The gradient is MindSpore's own formula; in two dimensions its sum over
    rows runs on the CPU kernel that needs no transposed copy.

    Input: scores <float32>[N, n]. Output: <float32>[N, n].
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ForwardPart(ops.Softmax(-1))
        self.backward = _SoftmaxBackward()

    def construct(self, scores: Tensor) -> Tensor:
        return self.softmax(scores)

    def bprop(self, scores: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor]:
        """The gradient of `scores` <float32>[N, n] from that of `out`, `dout`."""
        return (self.backward(out, dout),)


class _SoftmaxBackward(BackwardPart):
    """The gradient of `SoftmaxRows`.

    Inputs: out, dout <float32>[N, n], its output and that's gradient. Output: the gradient of the scores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(self, out: Tensor, dout: Tensor) -> Tensor:
        return (dout - self.sum(dout * out, -1)) * out


class FusedSoftmax(nn.Cell):
    """`SoftmaxRows` with the gradient as one operator.

    Input and output: as `SoftmaxRows`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax(-1)

    def construct(self, scores: Tensor) -> Tensor:
        return self.softmax(scores)


class ErfGeLU(nn.Cell):
    """x * Phi(x), the exact GeLU (arXiv 1606.08415)."""

    def construct(self, x: Tensor) -> Tensor:
        return x * (ops.erf(x * (1.0 / math.sqrt(2.0))) + 1.0) * 0.5


class FusedErfGeLU(nn.Cell):
    """`ErfGeLU` as one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu = GeluExt()

    def construct(self, x: Tensor) -> Tensor:
        return self.gelu(x, "none")


class TanhGeLU(nn.Cell):
    """The tanh form of GeLU; 0.5 * (1 + tanh(u)) is sigmoid(2u), one operator instead of three."""

    def construct(self, x: Tensor) -> Tensor:
        scale = 2.0 * math.sqrt(2.0 / math.pi)
        return x * ops.sigmoid(x * (x * x * (0.044715 * scale) + scale))


class FastGeLU(nn.Cell):
    """x * sigmoid(1.702 x), PanGu-alpha's activation."""

    def construct(self, x: Tensor) -> Tensor:
        return x * ops.sigmoid(x * 1.702)


@dataclass(frozen=True)
class KernelSet:
    """How elementary operations are computed on one kind of device: what makes the Cell of each.

    Attributes:
        name: of the device.
        normalise: from epsilon, see `Normalise`.
        softmax_rows: see `SoftmaxRows`.
        add_bias: of a bias after a sum over ranks, see `AddBias`.
        linear: see `MatMulAddBias`.
        add_batch_bias: from the number of terms, see `AddBatchBias`.
        activations: by name, of feed-forward networks; elementwise on any shape and float dtype.
        few_operators: whether launching a small operator takes longer than what it computes; then gradients of small
            results are in closed form (see `locmoe_ops.routers.losses`).
    """

    name: str
    normalise: Callable[[float], nn.Cell]
    softmax_rows: Callable[[], nn.Cell]
    add_bias: Callable[[], nn.Cell]
    linear: Callable[[], nn.Cell]
    add_batch_bias: Callable[[int], nn.Cell]
    activations: Mapping[str, Callable[[], nn.Cell]]
    few_operators: bool = False

    def activation(self, name: str) -> nn.Cell:
        """The activation called `name`. Raises InputError if there is none."""
        if name not in self.activations:
            raise InputError(f"activation: found '{name}', expected one of {', '.join(self.activations)}")
        return self.activations[name]()


CPU = KernelSet(
    "cpu",
    Normalise,
    SoftmaxRows,
    AddBias,
    lambda: MatMulAddBias(AddBias()),
    AddBatchBias,
    {"gelu": ErfGeLU, "gelu_tanh": TanhGeLU, "fast_gelu": FastGeLU, "relu": nn.ReLU},
)
ASCEND = KernelSet(
    "ascend",
    FusedNormalise,
    FusedSoftmax,
    ops.Add,  # BiasAdd is an operator that CANN compiles at its first use, Add one of its library
    DenseProduct,
    SummedBatchBias,
    {"gelu": FusedErfGeLU, "gelu_tanh": ops.GeLU, "fast_gelu": ops.FastGeLU, "relu": nn.ReLU},
    few_operators=True,
)


def kernel_set(device: Optional[str]) -> KernelSet:
    """The forms for a `runtime.device` that is resolved: `ascend`, or any other, for which CPU's are right."""
    return ASCEND if device == "ascend" else CPU
