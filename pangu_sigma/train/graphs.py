"""The graphs that make up an optimizer step, and how they are run one after another (see `pangu_sigma.train.step`)."""

from typing import Iterator, List, NamedTuple, Protocol, Tuple

from mindspore import Tensor, nn

from pangu_sigma.train.gradient_overlap import GradientOverlap
from pangu_sigma.train.step import ApplyStep, LastMicroStep, MicroStep, WholeStep


class StepGraph(NamedTuple):
    """One graph of an optimizer step: how often the step runs it, its Cell, and inputs of the shapes that it is
    compiled for.
    """

    name: str
    times: int
    cell: nn.Cell
    inputs: List[Tensor]


class OptimizerStep(Protocol):
    """An optimizer step from the tensors of its micro-batches."""

    def __call__(self, learning_rate: Tensor, micro_batches: List[List[Tensor]]) -> Tuple[Tensor, ...]: ...

    def graphs(self, learning_rate: Tensor, fields: List[Tensor], micro_batches: int) -> Iterator[StepGraph]: ...


class SingleGraphStep:
    """A step of one micro-batch."""

    def __init__(self, whole: WholeStep) -> None:
        self.whole = whole

    def __call__(self, learning_rate: Tensor, micro_batches: List[List[Tensor]]) -> Tuple[Tensor, ...]:
        return self.whole(learning_rate, *micro_batches[0])

    def graphs(self, learning_rate: Tensor, fields: List[Tensor], micro_batches: int) -> Iterator[StepGraph]:
        yield StepGraph("step", 1, self.whole, [learning_rate, *fields])


class AccumulatedStep:
    """A step of several micro-batches: one graph a micro-batch, one for the update."""

    def __init__(self, micro: MicroStep, apply: ApplyStep) -> None:
        self._micro = micro
        self._apply = apply

    def __call__(self, learning_rate: Tensor, micro_batches: List[List[Tensor]]) -> Tuple[Tensor, ...]:
        for fields in micro_batches:
            self._micro(*fields)
        return self._apply(learning_rate)

    def graphs(self, learning_rate: Tensor, fields: List[Tensor], micro_batches: int) -> Iterator[StepGraph]:
        yield StepGraph("micro_batch", micro_batches, self._micro, fields)
        yield StepGraph("update", 1, self._apply, [learning_rate])


class OverlappedStep:
    """A step of several micro-batches whose gradients are exchanged during the last one's backward pass."""

    def __init__(self, micro: MicroStep, last: LastMicroStep, early: GradientOverlap) -> None:
        self._micro, self._last, self._early = micro, last, early

    def __call__(self, learning_rate: Tensor, micro_batches: List[List[Tensor]]) -> Tuple[Tensor, ...]:
        self._early.send(False)
        for fields in micro_batches[:-1]:
            self._micro(*fields)
        self._early.send(True)
        return self._last(learning_rate, *micro_batches[-1])

    def graphs(self, learning_rate: Tensor, fields: List[Tensor], micro_batches: int) -> Iterator[StepGraph]:
        self._early.send(False)
        yield StepGraph("micro_batch", micro_batches - 1, self._micro, fields)
        self._early.send(True)
        yield StepGraph("last_micro_batch", 1, self._last, [learning_rate, *fields])
