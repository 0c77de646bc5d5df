"""Where compiled graphs come from: compiled on demand from a network, or read from MindIR files (see `export`)."""

from typing import Any, Callable, Dict, NamedTuple, Protocol, Tuple

from pangu_sigma.inference.buckets import bucket_of, rows_of
from pangu_sigma.inference.cells import Decode, Prefill
from pangu_sigma.inference.load import Model


class GraphPair(NamedTuple):
    """A prefill and a decode graph of the same rows and length; calls take and return tensors, see `cells`."""

    rows: int
    length: int
    prefill: Callable[..., Any]
    decode: Callable[..., Any]


class Graphs(Protocol):
    """A supply of graphs."""

    @property
    def most_rows(self) -> int:
        """Rows that go through a graph at once."""

    def pair(self, rows: int, positions: int) -> GraphPair:
        """Graphs for as many rows, at most `most_rows`, of as many positions each. Raises InputError where there are none."""


class CompiledGraphs:
    """Graphs of a network; a pair is compiled when first used, for a bucket of rows and one of positions."""

    def __init__(self, model: Model, most_rows: int) -> None:
        self.most_rows = most_rows
        self._model = model
        self._pairs: Dict[Tuple[int, int], GraphPair] = {}

    def pair(self, rows: int, positions: int) -> GraphPair:
        network, context = self._model.network, self._model.context
        shape = rows_of(rows, self.most_rows), bucket_of(positions, context.shape.sequence_length)
        if shape not in self._pairs:
            self._pairs[shape] = GraphPair(*shape, Prefill(network, context, *shape), Decode(network, context, *shape))
        return self._pairs[shape]
