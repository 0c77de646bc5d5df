"""Gradients whose all-reduce overlaps the backward pass: it starts while the layers below are still being computed.

The weights of the linear maps of attention and dense feed-forward networks are most of what data-parallel ranks share,
each is used once, and its gradient is final when the backward pass leaves its map. What remains for the end: the word
table, which the embedding uses last; the embeddings of positions, biases and norms, which are small; and the gates.
"""

from typing import Dict, List, Optional, Tuple

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.tensor_parallel import slice_of
from pangu_sigma.model.layers import GradientHook, Linear
from pangu_sigma.model.parameter_groups import BUCKET_ELEMENTS, ordered_parameters, plan_buckets


class OverlappedReduce(nn.Cell):
    """In the place of `GradientHook`: the all-reduce of the gradient of `weight` starts before the gradient of `x` is
    passed to the layer below, and its handle stands for the gradient until `OverlappedGradients` waits.

    Args:
        start: of an `AsyncAllReduce`.
    """

    def __init__(self, start: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.start = start

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        return x, weight

    def bprop(
        self, x: Tensor, weight: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """`dout`, the gradients of `out`, of which that of `weight` is started; that of `x` is the control."""
        handle, dx = self.start(dout[1], dout[0])
        return dx, handle


class OverlappedTotalReduce(nn.Cell):
    """`OverlappedReduce` of the gradient and what earlier micro-batches have left in `accumulated`, as whose gradient
    the handle comes out. The weight's own would not do: of a copy in half precision it has to be half precision, or
    MindSpore (2.10) takes it for that and drops casts.

    Args:
        start: of an `AsyncAllReduce`.
        accumulated: <float32>, of the weight's shape.
    """

    def __init__(self, start: nn.Cell, accumulated: Parameter) -> None:
        super().__init__(auto_prefix=False)
        # A tuple, and not a child of the map that this becomes a part of, which would rename it.
        self.accumulated = ParameterTuple([accumulated])
        self.reduce = _ReduceWithAddend(start)

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        return self.reduce(x, weight, self.accumulated[0])


class _ReduceWithAddend(nn.Cell):
    """`OverlappedReduce` with an addend, which is an input because a bprop may not read parameters."""

    def __init__(self, start: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.start = start
        self.zeros = ops.ZerosLike()

    def construct(self, x: Tensor, weight: Tensor, addend: Tensor) -> Tuple[Tensor, Tensor]:
        return x, weight

    def bprop(
        self, x: Tensor, weight: Tensor, addend: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        handle, dx = self.start(addend + ops.cast(dout[1], dtype.float32), dout[0])
        return dx, self.zeros(weight), handle


class GradientOverlap:
    """Which gradients of a network are reduced during the backward pass, in which messages, and the switch for it.

    Args:
        network: whose linear maps hold the weights.
        collectives: of this rank.
        accumulators: parameter name -> the sum of its gradients over earlier micro-batches; None: a step has one
            micro-batch.
        bucket: most numbers of a message, or one larger tensor.
        wire: type in which they travel; None: float32.

    Attributes:
        parameters: whose gradients are overlapped: the first of `ordered_parameters`, in the order of the backward
            pass.
        carriers: by which to differentiate for the handles: the parameters, or what earlier micro-batches have left.
        buckets: ranges (start, end) of them; each is one `AsyncAllReduce`.
        waits: the wait of each bucket.
    """

    def __init__(
        self,
        network: nn.Cell,
        collectives: Collectives,
        accumulators: Optional[Dict[str, Parameter]] = None,
        bucket: int = BUCKET_ELEMENTS,
        wire: Optional[dtype.Type] = None,
    ) -> None:
        maps = {id(cell.weight): cell for _, cell in network.cells_and_names() if isinstance(cell, Linear)}
        self.parameters = ordered_parameters(network.trainable_params(), slice_of)[: len(maps)]
        self._maps: List[Linear] = [maps[id(weight)] for weight in self.parameters]
        self.buckets = plan_buckets([parameter.size for parameter in self.parameters], bucket)
        sums = []
        for i, (start, end) in enumerate(self.buckets):
            shapes = [p.shape for p in self.parameters[start:end]]
            sums.append(collectives.all_reduce_async("dp", f"gradient/overlap {i}", shapes, wire))
        self.waits = [bucket.wait for bucket in sums]
        starts = [start for bucket in sums for start in bucket.starts]
        self._hooks: List[nn.Cell] = [OverlappedReduce(start) for start in starts]
        self.carriers = self.parameters
        if accumulators is not None:
            self.carriers = [accumulators[p.name] for p in self.parameters]
            for carrier in self.carriers:
                carrier.requires_grad = True
            self._hooks = [OverlappedTotalReduce(start, carrier) for start, carrier in zip(starts, self.carriers)]
        self._no_hook = GradientHook()

    def send(self, now: bool) -> None:
        """Graphs compiled from here on start the all-reduce in the backward pass (`now`), or return gradients as they
        are.
        """
        for linear, hook in zip(self._maps, self._hooks):
            linear.grad_hook = hook if now else self._no_hook


class OverlappedGradients(nn.Cell):
    """Waits for the sums of the gradients that a `GradientOverlap` has started; of none where there is no overlap.

    Args:
        overlap: says which they are.

    Attributes:
        count: of the gradients, which are the first in gradient order.

    Inputs: gradients, a tuple of tensors of which the first `count` are handles; after, any tensor that is to be
    computed before the wait. Output: a tuple of `count` sums <float32>.
    """

    def __init__(self, overlap: Optional[GradientOverlap]) -> None:
        super().__init__(auto_prefix=False)
        self.buckets = tuple(overlap.buckets) if overlap else ()
        self.waits = nn.CellList(overlap.waits if overlap else [])
        self.count = len(overlap.parameters) if overlap else 0

    def construct(self, gradients: Tuple[Tensor, ...], after: Tensor) -> Tuple[Tensor, ...]:
        sums = ()
        for (start, end), wait in zip(self.buckets, self.waits):
            sums = sums + wait(gradients[start:end], after)
        return sums
