"""Gradients that set out during the backward pass, while the layers below are still being computed.

The weights of the linear maps of attention and dense feed-forward networks are most of what data-parallel ranks share,
each is used once, and its gradient is final when the backward pass leaves its map. What remains for the end: the word
table, which the embedding uses last; the embeddings of positions, biases and norms, which are small; and the gates.
"""

from typing import Dict, List, Optional, Tuple

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from pangu_sigma.model.gradient_buckets import EARLY_BUCKET_ELEMENTS, plan_buckets
from pangu_sigma.model.layers import GradientHook, Linear
from pangu_sigma.model.parameter_groups import ordered_parameters


class SendGradient(nn.Cell):
    """In the place of `GradientHook`: the gradient of `weight` sets out before that of `x` goes on to the layer below.

    Args:
        start: of a `AsyncAllReduce`.
    """

    def __init__(self, start: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.start = start

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        return x, weight

    def bprop(
        self, x: Tensor, weight: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        handle, dx = self.start(dout[1], dout[0])
        return dx, handle


class SendTotal(nn.Cell):
    """`SendGradient` of the gradient and what earlier micro-batches have left in `accumulated`."""

    def __init__(self, start: nn.Cell, accumulated: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.accumulated = ParameterTuple(
            [accumulated]
        )  # not a child of the map that this becomes a part of, which would rename it
        self.send = _SendSum(start)

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        return self.send(x, weight, self.accumulated[0])


class _SendSum(nn.Cell):
    """`SendGradient` with an addend, which is an input because a bprop may not read parameters."""

    def __init__(self, start: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.start = start
        self.zeros = ops.ZerosLike()

    def construct(self, x: Tensor, weight: Tensor, addend: Tensor) -> Tuple[Tensor, Tensor]:
        return x, weight

    def bprop(
        self, x: Tensor, weight: Tensor, addend: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        handle, dx = self.start(addend + dout[1], dout[0])
        return dx, handle, self.zeros(addend)


class GradientOverlap:
    """Which gradients of a network set out early, in which messages, and the switch that makes them do so.

    Args:
        accumulators: parameter name -> the sum of its gradients over earlier micro-batches; None: a step has one
            micro-batch.

    Attributes: parameters (whose gradients set out early: the first of `ordered_parameters`, in the order of the
    backward pass); buckets (ranges of them); waits (of each bucket, see `AsyncAllReduce`).
    """

    def __init__(
        self, network: nn.Cell, collectives: Collectives, accumulators: Optional[Dict[str, Parameter]] = None
    ) -> None:
        maps = {id(cell.weight): cell for _, cell in network.cells_and_names() if isinstance(cell, Linear)}
        self.parameters = ordered_parameters(network)[: len(maps)]
        self._maps: List[Linear] = [maps[id(weight)] for weight in self.parameters]
        self.buckets = plan_buckets([parameter.size for parameter in self.parameters], EARLY_BUCKET_ELEMENTS)
        flights = [
            collectives.all_reduce_async("dp", f"gradient/early {i}", [p.shape for p in self.parameters[start:end]])
            for i, (start, end) in enumerate(self.buckets)
        ]
        self.waits = [flight.wait for flight in flights]
        starts = [start for flight in flights for start in flight.starts]
        self._senders: List[nn.Cell] = [SendGradient(start) for start in starts]
        if accumulators is not None:
            self._senders = [SendTotal(start, accumulators[p.name]) for start, p in zip(starts, self.parameters)]
        self._keep = GradientHook()

    def send(self, now: bool) -> None:
        """Graphs compiled from here on send gradients early, or return them as they are."""
        for linear, sender in zip(self._maps, self._senders):
            linear.take = sender if now else self._keep
