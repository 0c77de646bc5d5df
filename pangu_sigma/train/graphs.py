"""The graphs that make up an optimizer step, and how they are run one after another (see `pangu_sigma.train.step`)."""

from typing import Iterator, List, NamedTuple, Protocol

from mindspore import Tensor, nn

from pangu_sigma.train.gradient_overlap import GradientOverlap
from pangu_sigma.train.step import ApplyStep, LastMicroStep, MicroStep, WholeStep
from pangu_sigma.train.update import StepOutputs, read_outputs


class StepGraph(NamedTuple):
    """One graph of an optimizer step.

    Attributes:
        name: of the graph.
        times: how often the step runs it.
        cell: to be compiled.
        inputs: of the shapes that it is compiled for.
    """

    name: str
    times: int
    cell: nn.Cell
    inputs: List[Tensor]


class OptimizerStep(Protocol):
    """An optimizer step from the tensors of its micro-batches, each as `pack_batch` orders them."""

    def __call__(self, learning_rate: Tensor, micro_batches: List[List[Tensor]]) -> StepOutputs: ...

    def graphs(self, learning_rate: Tensor, fields: List[Tensor], micro_batches: int) -> Iterator[StepGraph]:
        """The step's graphs.

        Args:
            learning_rate, fields: inputs of the shapes that the graphs are compiled for; `fields` of a micro-batch.
            micro_batches: how many of them a step has.
        """


class SingleGraphStep:
    """A step of one micro-batch."""

    def __init__(self, whole: WholeStep) -> None:
        self.whole = whole

    def __call__(self, learning_rate: Tensor, micro_batches: List[List[Tensor]]) -> StepOutputs:
        return read_outputs(self.whole(learning_rate, *micro_batches[0]))

    def graphs(self, learning_rate: Tensor, fields: List[Tensor], micro_batches: int) -> Iterator[StepGraph]:
        """One graph of `learning_rate` and `fields`; `micro_batches` is 1."""
        yield StepGraph("step", 1, self.whole, [learning_rate, *fields])


class AccumulatedStep:
    """A step of several micro-batches: one graph a micro-batch, one for the update."""

    def __init__(self, micro: MicroStep, apply: ApplyStep) -> None:
        self._micro = micro
        self._apply = apply

    def __call__(self, learning_rate: Tensor, micro_batches: List[List[Tensor]]) -> StepOutputs:
        for fields in micro_batches:
            self._micro(*fields)
        return read_outputs(self._apply(learning_rate))

    def graphs(self, learning_rate: Tensor, fields: List[Tensor], micro_batches: int) -> Iterator[StepGraph]:
        """A graph of `fields`, run `micro_batches` times, and the update's, of `learning_rate`."""
        yield StepGraph("micro_batch", micro_batches, self._micro, fields)
        yield StepGraph("update", 1, self._apply, [learning_rate])


class OverlappedStep:
    """A step of several micro-batches whose gradients are summed over ranks during the last one's backward pass.

    Args:
        micro, last: the graphs of all micro-batches but the last one, and of that.
        overlap: is switched between them, while they are compiled.
    """

    def __init__(self, micro: MicroStep, last: LastMicroStep, overlap: GradientOverlap) -> None:
        self._micro, self._last, self._overlap = micro, last, overlap

    def __call__(self, learning_rate: Tensor, micro_batches: List[List[Tensor]]) -> StepOutputs:
        self._overlap.send(False)
        for fields in micro_batches[:-1]:
            self._micro(*fields)
        self._overlap.send(True)
        return read_outputs(self._last(learning_rate, *micro_batches[-1]))

    def graphs(self, learning_rate: Tensor, fields: List[Tensor], micro_batches: int) -> Iterator[StepGraph]:
        """A graph of `fields`, run `micro_batches` - 1 times, and the last one's, of `learning_rate` and `fields`."""
        self._overlap.send(False)
        yield StepGraph("micro_batch", micro_batches - 1, self._micro, fields)
        self._overlap.send(True)
        yield StepGraph("last_micro_batch", 1, self._last, [learning_rate, *fields])
