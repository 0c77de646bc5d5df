"""The feed-forward networks of a sparse layer, as one batched matmul over the experts that this rank holds.

Shape legend: L experts of this rank, s slots of each, R rows of all of them, d hidden size, f inner features, of which
a rank of a tensor-parallel group holds an equal part.
"""

from dataclasses import dataclass, replace
from typing import Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.draws import normal_part
from locmoe_ops.fused import GroupedProduct, GroupedRows
from locmoe_ops.kernels import CPU, KernelSet
from locmoe_ops.tensor_parallel import SplitRegion, marked, slice_of, whole_shape


class AddRowBias(nn.Cell):
    """`locmoe_ops.kernels.AddBatchBias` for rows of all experts behind each other: a product with the rows' experts,
    hence so is the gradient.

    Args:
        terms: see `locmoe_ops.kernels.AddBatchBias`.

    Inputs: x <float>[R, n]; bias <float>[L, 1, n]; member <float>[R, L], 1 where a row is an expert's. Output:
    <float>[R, n].
    """

    def __init__(self, terms: int = 1) -> None:
        super().__init__()
        self.terms = terms
        self.matmul, self.transposed = ops.MatMul(), ops.MatMul(transpose_a=True)
        self.zeros = ops.ZerosLike()

    def construct(self, x: Tensor, bias: Tensor, member: Tensor) -> Tensor:
        rows = self.matmul(member, bias.reshape(bias.shape[0], -1))  # (R, n) <- (R, L), (L, n) <- (L, 1, n)
        return x + rows if self.terms == 1 else x + rows * (1.0 / self.terms)

    def bprop(
        self, x: Tensor, bias: Tensor, member: Tensor, out: Tensor, dout: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """The gradients of `x` and `bias` from that of `out`, `dout`; `member` has none."""
        return dout, self.transposed(member, dout).reshape(bias.shape), self.zeros(member)  # (L, 1, n) <- (L, n)


@dataclass(frozen=True)
class ExpertKernels:
    """How experts multiply.

    Attributes:
        compute_dtype: of the matmuls; parameters stay float32. fused: by Ascend's fused kernel, see `GroupedProduct`.
        forms: of the other operations, by device.
    """

    compute_dtype: dtype.Type = dtype.float32
    fused: bool = False
    forms: KernelSet = CPU


class ExpertBank(nn.Cell):
    """`W_out . act(W_in . x + b_in) + b_out` for each local expert (LocMoE Eq. 1). It does not know where its tokens
    came from. `read_w_in` and its like read the parameters: as they are, unless a training run puts other Cells there,
    which read copies in `compute_dtype`.

    In a tensor-parallel group each rank holds an equal part of every expert's inner features, a split region of its
    own: hence the sum over the group stands here and not in a dispatcher. Its way in and out is given, since slots of
    which the ranks have a share each are gathered and scattered where whole ones are only summed.

    Args:
        local_experts: global ids of the experts held here, in buffer order; length L.
        hidden_size: d. ffn_hidden_size: f. act: name of the activation.
        kernels: how they multiply.
        region: the group that splits the inner features, with the ways into it and out of it.

    Inputs: x <float>[L, s, d], or with `of` <int32>[M] <float>[M, s, d], blocks of which each is for the local expert
    of that number; or with fused kernels and `groups` <float>[R, d], rows of one expert behind another's, the groups
    being sizes <int64>[L], rows of each, and member <float32>[R, L], 1 where a row is an expert's. Output:
    <compute_dtype>, as x; rows that are nobody's are 0.
    """

    def __init__(
        self,
        local_experts: Tuple[int, ...],
        hidden_size: int,
        ffn_hidden_size: int,
        act: str = "gelu",
        kernels: ExpertKernels = ExpertKernels(),  # noqa: B008  (frozen)
        region: SplitRegion = SplitRegion(),  # noqa: B008
    ) -> None:
        super().__init__()
        tensor = region.tensor
        count, inner = len(local_experts), ffn_hidden_size // tensor.size
        self.local_experts = local_experts
        self.compute_dtype = kernels.compute_dtype
        self.w_in = marked(_zeros((count, hidden_size, inner), "w_in"), tensor.slice(2))
        self.b_in = marked(_zeros((count, 1, inner), "b_in"), tensor.slice(2))
        self.w_out = marked(_zeros((count, inner, hidden_size), "w_out"), tensor.slice(1))
        self.b_out = _zeros((count, 1, hidden_size), "b_out")
        self.read_w_in, self.read_b_in = nn.Identity(), nn.Identity()
        self.read_w_out, self.read_b_out = nn.Identity(), nn.Identity()
        self.act = kernels.forms.activation(act)
        self.add_bias = kernels.forms.add_batch_bias(1)
        self.add_output_bias = kernels.forms.add_batch_bias(tensor.size)
        self.copy_in = region.copy_in or nn.Identity()
        self.reduce_out = region.reduce_out or nn.Identity()
        self.matmul = GroupedProduct() if kernels.fused else ops.BatchMatMul()
        self.row_product = GroupedRows() if kernels.fused else nn.Identity()
        self.add_row_bias, self.add_output_row_bias = AddRowBias(), AddRowBias(tensor.size)

    def initialise(self, seed: int, std_in: float = 0.02, std_out: float = 0.02, alike: int = 1) -> None:
        """Draws normal weights; every expert from its own stream, so that they do not depend on which ranks hold it.

        Args:
            seed: of all streams. std_in, std_out: standard deviations of `w_in` and `w_out`.
            alike: experts i * alike .. (i + 1) * alike - 1 share a stream and begin equal: 1 makes all different, n
                copies one network within a group.
        """
        for parameter, std, stream in ((self.w_in, std_in, 0), (self.w_out, std_out, 1)):
            shape, part = whole_shape(parameter)[1:], slice_of(parameter)
            of_expert = None if part is None else replace(part, axis=part.axis - 1)
            drawn = np.empty(parameter.shape, np.float32)
            for place, expert in enumerate(self.local_experts):
                stream_of_expert = np.random.SeedSequence((seed, stream, expert // alike))
                drawn[place] = normal_part(stream_of_expert, shape, std, of_expert)
            parameter.set_data(Tensor(drawn))

    def construct(
        self, x: Tensor, of: Optional[Tensor] = None, groups: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Tensor:
        kind = self.compute_dtype
        w_in, b_in = self.read_w_in(self.w_in), self.read_b_in(self.b_in)
        w_out, b_out = self.read_w_out(self.w_out), self.read_b_out(self.b_out)
        if of is not None:  # (M, ...) <- (L, ...), (M,)
            w_in, b_in = ops.gather(w_in, of, 0), ops.gather(b_in, of, 0)
            w_out, b_out = ops.gather(w_out, of, 0), ops.gather(b_out, of, 0)
        x = self.copy_in(ops.cast(x, kind))
        if groups is not None:
            sizes, member, nobodys = groups[0], ops.cast(groups[1], kind), groups[1].sum(1, keepdims=True) < 0.5
            hidden = self.row_product(x, ops.cast(w_in, kind), sizes, nobodys)
            hidden = self.act(self.add_row_bias(hidden, ops.cast(b_in, kind), member))
            y = self.row_product(hidden, ops.cast(w_out, kind), sizes, nobodys)
            return self.reduce_out(self.add_output_row_bias(y, ops.cast(b_out, kind), member))
        hidden = self.add_bias(self.matmul(x, ops.cast(w_in, kind)), ops.cast(b_in, kind))
        y = self.add_output_bias(self.matmul(self.act(hidden), ops.cast(w_out, kind)), ops.cast(b_out, kind))
        return self.reduce_out(y)


def _zeros(shape: Tuple[int, ...], name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)
