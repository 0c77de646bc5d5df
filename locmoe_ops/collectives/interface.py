"""The collectives that models and training are written against, the same on every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology

if TYPE_CHECKING:  # the mesh and the command line need this module long before MindSpore
    from mindspore import nn


class BytesSent(NamedTuple):
    """Payload bytes this rank has sent since the start; headers and joining are left out."""

    intra_node: int
    inter_node: int
    counted: bool = True  # False where the backend cannot see its traffic: the zeros then say nothing


class CommunicationTimes(NamedTuple):
    """Seconds this rank spent on collectives since the start, summed over collectives.

    `communication_s`: from the first byte of the last peer to the end; `idle_s`: blocked before that byte;
    `overlapped_s`: the part of `communication_s` in which the caller was not blocked.
    """

    communication_s: float
    idle_s: float
    overlapped_s: float = 0.0


class AsyncAllToAll(NamedTuple):
    """An all-to-all in two Cells, so that something else can be computed between them.

    `start` maps the tensor to a stand-in of the same shape and dtype that only `wait` may look into; `wait` maps that
    to the result. In the backward pass the gradient sets out in `wait` and is awaited in `start`.
    """

    start: nn.Cell
    wait: nn.Cell


class AsyncAllReduce(NamedTuple):
    """Sums over a group that set out one by one while something else is computed, and are awaited together.

    `starts[i]` maps the i-th tensor <float32> and a control, any tensor, to a stand-in for the sum, into which only
    `wait` may look, and the control: what is computed from the control comes after the tensor has set out. `wait` maps
    the tuple of all stand-ins, and a tensor that is to be computed before, to the tuple of sums. No Cell has a
    gradient.
    """

    starts: tuple[nn.Cell, ...]
    wait: nn.Cell


class UnevenRows(NamedTuple):
    """Fixed shapes of an `all_to_all_v`: rows of the send buffer and of the receive buffer; what to do if the latter is
    too small.
    """

    rows: int
    limit: int
    advice: str = ""


class Collectives(ABC):
    """Makes Cells that exchange tensors within the named groups of a `Topology`.

    P is the number of ranks of `group`, a kind of `locmoe_ops.topology.GROUP_KINDS`. Every rank of the group must
    run the Cell, with equal shapes and dtypes. `tag` names the call site in errors and must be the same on all its
    ranks and not be used elsewhere; a Cell may be run many times. Shapes are static. All Cells are differentiable:
    the objective is the sum over ranks of their local losses, and each Cell's backward is its exact adjoint.
    In a group of one rank every Cell is the identity.
    """

    def __init__(self, rank: int, topology: Topology) -> None:
        if not 0 <= rank < topology.world_size:
            raise InputError(f"collectives: rank {rank} is outside 0..{topology.world_size - 1}")
        self.rank = rank
        self.topology = topology

    def all_to_all(self, group: str, tag: str) -> nn.Cell:
        """(P, ...) -> (P, ...): slice i goes to the i-th rank of the group. Adjoint: all_to_all."""
        return self._cell_or_identity("all_to_all", group, tag)

    def all_to_all_async(self, group: str, tag: str) -> AsyncAllToAll:
        """`all_to_all`, begun and awaited. Every start must be followed by one wait, in the order of the starts."""
        ranks = self.topology.group_of(group, self.rank)
        if len(ranks) == 1:
            from mindspore import nn

            return AsyncAllToAll(nn.Identity(), nn.Identity())
        return self._all_to_all_async(group, ranks, tag)

    def all_reduce_async(self, group: str, tag: str, shapes: Sequence[tuple[int, ...]]) -> AsyncAllReduce:
        """Sums of tensors of these shapes, as `HierarchicalAllReduce` makes them, to the bit. Once all have started
        they must be awaited.
        """
        from locmoe_ops.collectives.hierarchical_reduce import HierarchicalAllReduce, StartAllReduce, WaitAllReduce

        return AsyncAllReduce(
            tuple(StartAllReduce(HierarchicalAllReduce(self, group, f"{tag}/{i}")) for i in range(len(shapes))),
            WaitAllReduce(),
        )

    def all_to_all_v(self, group: str, tag: str, rows: int, limit: int, advice: str = "") -> nn.Cell:
        """An all-to-all of unequal parts of which only the real rows travel.

        The Cell maps rows <float>[rows, d], send_counts <int32>[P] and receive_counts <int32>[P] to <float>[limit, d].
        The first send_counts[0] rows go to the first rank of the group, the next send_counts[1] to the second, further
        ones nowhere. What arrives lies in the order of ranks, with zeros after it. Ranks must agree on the counts:
        exchange them with `all_to_all` first. Adjoint: the exchange back, with the counts swapped.

        More than `limit` rows to receive: on tcp the job ends with a CollectiveError that names tag, rank and rows and
        closes with `advice`; hccl, whose graphs cannot stop with a message, returns NaN throughout. No row is dropped
        in silence.
        """
        ranks = self.topology.group_of(group, self.rank)
        if len(ranks) == 1:
            from locmoe_ops.collectives.rows import KeepRows

            return KeepRows(rows, limit)
        return self._uneven(group, ranks, tag, UnevenRows(rows, limit, advice))

    def all_gather(self, group: str, tag: str) -> nn.Cell:
        """(n, ...) -> (P * n, ...): concatenated in group order. Adjoint: reduce_scatter."""
        return self._cell_or_identity("all_gather", group, tag)

    def reduce_scatter(self, group: str, tag: str) -> nn.Cell:
        """(P * n, ...) -> (n, ...): rank i of the group keeps the sum of everybody's i-th part. Adjoint: all_gather."""
        return self._cell_or_identity("reduce_scatter", group, tag)

    def all_reduce(self, group: str, tag: str) -> nn.Cell:
        """Any shape, summed over the group; the same bits on all its ranks (tcp). Adjoint: all_reduce."""
        return self._cell_or_identity("all_reduce", group, tag)

    def broadcast(self, group: str, tag: str, root: int = 0) -> nn.Cell:
        """Any shape; everyone gets the input of the `root`-th rank of the group. Adjoint: sum at root, else zeros."""
        size = len(self.topology.group_of(group, self.rank))
        if not 0 <= root < size:
            raise InputError(f"broadcast {tag!r}: root {root} is outside the {size} ranks of group {group}")
        return self._cell_or_identity("broadcast", group, tag, root)

    def _cell_or_identity(self, operation: str, group: str, tag: str, root: int = 0) -> nn.Cell:
        ranks = self.topology.group_of(group, self.rank)
        if len(ranks) == 1:
            from mindspore import nn

            return nn.Identity()
        return self._cell(operation, group, ranks, tag, root)

    @abstractmethod
    def _cell(self, operation: str, group: str, ranks: tuple[int, ...], tag: str, root: int) -> nn.Cell:
        """The Cell of `operation` in a group of several ranks."""

    @abstractmethod
    def _all_to_all_async(self, group: str, ranks: tuple[int, ...], tag: str) -> AsyncAllToAll:
        """The Cells of `all_to_all_async` in a group of several ranks."""

    @abstractmethod
    def _uneven(self, group: str, ranks: tuple[int, ...], tag: str, size: UnevenRows) -> nn.Cell:
        """The Cell of `all_to_all_v` in a group of several ranks."""

    @abstractmethod
    def barrier(self) -> None:
        """Returns when every rank of the world has called it."""

    @abstractmethod
    def bytes_sent(self, cause: str | None = None) -> BytesSent:
        """Bytes of the collectives so far whose tag begins with `cause` and a slash (None: of all); cheap."""

    @abstractmethod
    def times(self, cause: str | None = None) -> CommunicationTimes:
        """Times, likewise; cheap."""

    @abstractmethod
    def close(self) -> None:
        """Leaves the job in good order; later collectives fail. Calling it again does nothing."""
