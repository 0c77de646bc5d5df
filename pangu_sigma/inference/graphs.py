"""Where compiled graphs come from: compiled on demand from a network, or read from MindIR files (see `export`)."""

from typing import Any, Callable, Dict, NamedTuple, Protocol

from pangu_sigma.inference.buckets import bucket_of
from pangu_sigma.inference.cells import Decode, Prefill
from pangu_sigma.inference.load import Model


class GraphPair(NamedTuple):
    """A prefill and a decode graph of the same rows and length; calls take and return tensors, see `cells`."""

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


class CompiledGraphs:
    """Graphs of a network; a pair is compiled when first used, for a bucket of positions. Raises InputError for too
    many.
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
            self._pairs[length] = GraphPair(*shape, Prefill(network, context, *shape), Decode(network, context, *shape))
        return self._pairs[length]
