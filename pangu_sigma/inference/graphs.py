"""Where compiled graphs come from: compiled on demand from a network, or read from MindIR files (see `export`).

Shapes are static: rows of any length share the graphs of a few lengths, the buckets.
"""

import logging
from typing import Any, Callable, Dict, NamedTuple, Protocol, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.inference.cells import Decode, Prefill
from pangu_sigma.inference.load import Model
from pangu_sigma.runtime.progress import waiting_for

SHORTEST = 32  # positions of the smallest bucket: shorter ones would save little and cost a compilation each


def length_buckets(sequence_length: int) -> Tuple[int, ...]:
    """Powers of two from SHORTEST on, as far as they are below `sequence_length`, which is the last bucket."""
    found = []
    length = SHORTEST
    while length < sequence_length:
        found.append(length)
        length *= 2
    return (*found, sequence_length)


def bucket_of(positions: int, sequence_length: int) -> int:
    """The smallest bucket with as many positions. Raises InputError where there is none."""
    for length in length_buckets(sequence_length):
        if positions <= length:
            return length
    raise InputError(f"{positions} positions do not fit model.sequence_length ({sequence_length})")


class GraphPair(NamedTuple):
    """A prefill and a decode graph of the same shape; calls take and return tensors, see `cells`.

    Attributes: rows, length: of both; prefill, decode: the graphs.
    """

    rows: int
    length: int
    prefill: Callable[..., Any]
    decode: Callable[..., Any]


class Graphs(Protocol):
    """A supply of graphs, all of the same number of rows."""

    @property
    def rows(self) -> int:
        """Rows that go through a graph at once."""

    def pair(self, positions: int) -> GraphPair:
        """Graphs for rows of so many positions."""


class CompiledAtFirst:
    """A Cell whose first call compiles it, for which a user on a terminal sees the seconds.

    Args:
        cell: it.
    """

    def __init__(self, cell: Callable[..., Any]) -> None:
        self._cell = cell
        self._is_compiled = False

    def __call__(self, *inputs: Any) -> Any:
        if self._is_compiled:
            return self._cell(*inputs)
        with waiting_for("compiling", logging.DEBUG):
            outputs = self._cell(*inputs)
        self._is_compiled = True
        return outputs


class CompiledGraphs:
    """Graphs of a network; a pair is compiled when first used, for a bucket of positions. Raises InputError for too
    many.

    Args:
        model: whose network. rows: of all graphs.
    """

    def __init__(self, model: Model, rows: int) -> None:
        self.rows = rows
        self._model = model
        self._pairs: Dict[int, GraphPair] = {}

    def pair(self, positions: int) -> GraphPair:
        network, context = self._model.network, self._model.context
        length = bucket_of(positions, context.shape.sequence_length)
        if length not in self._pairs:
            shape = self.rows, length
            cells = Prefill(network, context, *shape), Decode(network, context, *shape)
            self._pairs[length] = GraphPair(*shape, *(CompiledAtFirst(cell) for cell in cells))
        return self._pairs[length]
