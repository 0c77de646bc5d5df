"""The feed-forward networks of a sparse layer, as one batched matmul over the experts that this rank holds."""

import math
from typing import Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.activations import activation


class AddBatchBias(nn.Cell):
    """Adds each expert's bias to its rows. The gradient sums over rows by a product with ones, on CPU ten times as fast as
    ReduceSum over a middle dimension.

    Inputs: x <float>[L, slots, n]; bias <float>[L, 1, n]. Output: <float>[L, slots, n].
    """

    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.BatchMatMul()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        return dout, self.matmul(ops.ones((x.shape[0], 1, x.shape[1]), dout.dtype), dout)


class ExpertBank(nn.Cell):
    """`W_out . act(W_in . x + b_in) + b_out` for each local expert (LocMoE Eq. 1). It does not know where its tokens came from.

    Args:
        local_experts: global ids of the experts held here, in buffer order; length L.
        hidden_size: d. ffn_hidden_size: f. act: name of the activation.
        compute_dtype: dtype of the matmuls; parameters stay float32.

    Inputs: x <float>[L, slots, d]. Output: <compute_dtype>[L, slots, d].
    """

    def __init__(self, local_experts: Tuple[int, ...], hidden_size: int, ffn_hidden_size: int, act: str = "gelu",
                 compute_dtype: dtype.Type = dtype.float32) -> None:
        super().__init__()
        count = len(local_experts)
        self.local_experts = local_experts
        self.compute_dtype = compute_dtype
        self.w_in = _zeros((count, hidden_size, ffn_hidden_size), "w_in")
        self.b_in = _zeros((count, 1, ffn_hidden_size), "b_in")
        self.w_out = _zeros((count, ffn_hidden_size, hidden_size), "w_out")
        self.b_out = _zeros((count, 1, hidden_size), "b_out")
        self.act = activation(act)
        self.add_bias = AddBatchBias()
        self.matmul = ops.BatchMatMul()

    def initialise(self, seed: int, std_in: float = 0.02, std_out: float = 0.02, alike: int = 1) -> None:
        """Draws normal weights; every expert from its own stream, so that they do not depend on which rank holds it. Experts
        i * alike .. (i + 1) * alike - 1 share a stream and begin equal: 1 makes all different, n copies one network within a group.
        """
        for parameter, std, stream in ((self.w_in, std_in, 0), (self.w_out, std_out, 1)):
            drawn = [_normal(parameter.shape[1:], std, (seed, stream, expert // alike)) for expert in self.local_experts]
            parameter.set_data(Tensor(np.stack(drawn)))

    def construct(self, x: Tensor) -> Tensor:
        kind = self.compute_dtype
        hidden = self.add_bias(self.matmul(ops.cast(x, kind), ops.cast(self.w_in, kind)), ops.cast(self.b_in, kind))
        return self.add_bias(self.matmul(self.act(hidden), ops.cast(self.w_out, kind)), ops.cast(self.b_out, kind))


def _zeros(shape: Tuple[int, ...], name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)


def _normal(shape: Tuple[int, ...], std: float, key: Tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(np.random.SeedSequence(key))
    return (generator.standard_normal(math.prod(shape), dtype=np.float32) * std).astype(np.float32).reshape(shape)
