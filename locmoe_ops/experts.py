"""The feed-forward networks of a sparse layer, as one batched matmul over the experts that this rank holds."""

import math
from typing import Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.functions import activation
from locmoe_ops.fused import GroupedProduct
from locmoe_ops.tensor_parallel import ALONE, TensorGroup, marked, own_part, whole_shape


class AddBatchBias(nn.Cell):
    """Adds each expert's bias to its rows. The gradient sums over rows by a product with ones, on CPU ten times as fast
    as ReduceSum over a middle dimension.

    Args:
        parts: the result is one of this many terms of a sum. Each holds as many parts less of the bias; as the gradient
            of a sum is that of each term, each has the bias's whole gradient nevertheless.

    Inputs: x <float>[L, slots, n]; bias <float>[L, 1, n]. Output: <float>[L, slots, n].
    """

    def __init__(self, parts: int = 1) -> None:
        super().__init__()
        self.parts = parts
        self.matmul = ops.BatchMatMul()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias if self.parts == 1 else x + bias * (1.0 / self.parts)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        return dout, self.matmul(ops.ones((x.shape[0], 1, x.shape[1]), dout.dtype), dout)


class ExpertBank(nn.Cell):
    """`W_out . act(W_in . x + b_in) + b_out` for each local expert (LocMoE Eq. 1). It does not know where its tokens
    came from.

    In a tensor-parallel group each rank holds an equal part of every expert's inner features, a split region of its
    own: hence the sum over the group stands here and not in a dispatcher. Its way in and out is given, since slots of
    which the ranks have a share each are gathered and scattered where whole ones are only summed.

    Args:
        local_experts: global ids of the experts held here, in buffer order; length L.
        hidden_size: d. ffn_hidden_size: f. act: name of the activation.
        compute_dtype: dtype of the matmuls; parameters stay float32.
        tensor: the group that splits the inner features. enter, leave: its ways into and out of the region; none where
            it is alone.
        fused: multiply by Ascend's fused kernel, see `GroupedProduct`.

    Inputs: x <float>[L, slots, d]. Output: <compute_dtype>[L, slots, d].
    """

    def __init__(
        self,
        local_experts: Tuple[int, ...],
        hidden_size: int,
        ffn_hidden_size: int,
        act: str = "gelu",
        compute_dtype: dtype.Type = dtype.float32,
        tensor: TensorGroup = ALONE,
        enter: Optional[nn.Cell] = None,
        leave: Optional[nn.Cell] = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        count, inner = len(local_experts), ffn_hidden_size // tensor.size
        self.local_experts = local_experts
        self.compute_dtype = compute_dtype
        self.w_in = marked(_zeros((count, hidden_size, inner), "w_in"), tensor.slice(2))
        self.b_in = marked(_zeros((count, 1, inner), "b_in"), tensor.slice(2))
        self.w_out = marked(_zeros((count, inner, hidden_size), "w_out"), tensor.slice(1))
        self.b_out = _zeros((count, 1, hidden_size), "b_out")
        self.act = activation(act)
        self.add_bias = AddBatchBias()
        self.add_output_bias = AddBatchBias(tensor.size)
        self.enter = enter or nn.Identity()
        self.leave = leave or nn.Identity()
        self.matmul = GroupedProduct() if fused else ops.BatchMatMul()

    def initialise(self, seed: int, std_in: float = 0.02, std_out: float = 0.02, alike: int = 1) -> None:
        """Draws normal weights; every expert from its own stream, so that they do not depend on which ranks hold it.
        Experts i * alike .. (i + 1) * alike - 1 share a stream and begin equal: 1 makes all different, n copies one
        network within a group.
        """
        for parameter, std, stream in ((self.w_in, std_in, 0), (self.w_out, std_out, 1)):
            drawn = [
                _normal(whole_shape(parameter)[1:], std, (seed, stream, expert // alike))
                for expert in self.local_experts
            ]
            parameter.set_data(Tensor(own_part(parameter, np.stack(drawn))))

    def construct(self, x: Tensor) -> Tensor:
        kind = self.compute_dtype
        x = ops.cast(self.enter(x), kind)
        hidden = self.add_bias(self.matmul(x, ops.cast(self.w_in, kind)), ops.cast(self.b_in, kind))
        y = self.add_output_bias(self.matmul(self.act(hidden), ops.cast(self.w_out, kind)), ops.cast(self.b_out, kind))
        return self.leave(y)


def _zeros(shape: Tuple[int, ...], name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)


def _normal(shape: Tuple[int, ...], std: float, key: Tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(np.random.SeedSequence(key))
    return (generator.standard_normal(math.prod(shape), dtype=np.float32) * std).astype(np.float32).reshape(shape)
