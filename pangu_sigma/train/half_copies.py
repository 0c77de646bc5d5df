"""Parameters once more in the matmuls' own type, made once a step and not once a micro-batch.

A weight that is cast where it is used is read in float32 and written in half precision in every micro-batch, and so
is its gradient, the other way round. With copies a micro-batch reads half precision alone, and its gradients go as they
are to the accumulators, which are float32. In a step of one micro-batch the cast in its graph is that one time: no
copies.
"""

from typing import Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops

from locmoe_ops.experts import ExpertBank
from pangu_sigma.model.layers import Linear
from pangu_sigma.model.pangu_sigma import PanGuSigma

_refresh = ops.MultitypeFuncGraph("refresh")


@_refresh.register("Tensor", "Tensor")
def _refresh_one(copy: Tensor, parameter: Tensor) -> Tensor:
    return ops.assign(copy, ops.cast(parameter, copy.dtype))


class Reader(NamedTuple):
    """A Cell that computes with a parameter in half precision: `name` is that of its child which reads `parameter`."""

    cell: nn.Cell
    name: str
    parameter: Parameter


def readers(network: PanGuSigma) -> Iterator[Reader]:
    """All of a network: linear maps and experts, weights and biases, and the head, which reads the word table."""
    for _, cell in network.cells_and_names():
        names: Tuple[str, ...] = ()
        if isinstance(cell, Linear):
            names = ("weight", "bias") if cell.has_bias else ("weight",)
        elif isinstance(cell, ExpertBank):
            names = ("w_in", "b_in", "w_out", "b_out")
        yield from (Reader(cell, f"read_{name}", getattr(cell, name)) for name in names)
    yield Reader(network.head, "read_word", network.embedding.word)


class CopyOf(nn.Cell):
    """Reads `copy` in the place of the parameter that it is given."""

    def __init__(self, copy: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.copies = ParameterTuple([copy])  # a tuple: the Cell that this becomes a child of gives it no name

    def construct(self, parameter: Tensor) -> Tensor:
        return self.copies[0]


class RefreshCopies(nn.Cell):
    """Gives copies the values of their parameters, rounded. No input; output: the copies."""

    def __init__(self, copies: Sequence[Parameter], parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.copies, self.parameters = ParameterTuple(copies), ParameterTuple(parameters)
        self.map = ops.HyperMap()

    def construct(self) -> Tuple[Tensor, ...]:
        return self.map(_refresh, self.copies, self.parameters)


class HalfCopies:
    """The copies that a network computes with from now on; `refresh` before it computes.

    Args:
        network: whose Cells read copies where they compute in half precision. The embedding still reads the word table
            itself: it adds up the gradients of a word's tokens, in float32.
        kind: float16 or bfloat16.

    Attributes:
        refresh: a Cell, see `RefreshCopies`.
    """

    def __init__(self, network: PanGuSigma, kind: dtype.Type) -> None:
        found = list(readers(network))
        copies = [
            Parameter(Tensor(np.zeros(one.parameter.shape, np.float32), kind), name=f"copy.{one.parameter.name}")
            for one in found
        ]
        self._of = {id(one.parameter): copy for one, copy in zip(found, copies)}
        self._twice = id(network.embedding.word)
        self.refresh = RefreshCopies(copies, [one.parameter for one in found])
        for one, copy in zip(found, copies):
            setattr(one.cell, one.name, CopyOf(copy))

    def differentiated(self, parameters: Sequence[Parameter]) -> "Differentiated":
        """What to differentiate by for the gradients of `parameters`."""
        places = [place for place, one in enumerate(parameters) if id(one) == self._twice]
        read = [one if id(one) == self._twice else self._of.get(id(one), one) for one in parameters]
        return Differentiated(read + [self._of[id(parameters[place])] for place in places], tuple(places))


class Differentiated(NamedTuple):
    """What gradients are taken by.

    Attributes:
        parameters: those of the gradients, or their copies, in order; then the copies of those that are read both ways.
        twice: places of the latter among the gradients.
    """

    parameters: List[Parameter]
    twice: Tuple[int, ...] = ()

    @property
    def gradients(self) -> int:
        """Gradients that there are."""
        return len(self.parameters) - len(self.twice)
