"""The collectives that models and training are written against, the same on every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from locmoe_ops.collectives.registry import purpose_of
from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology

if TYPE_CHECKING:  # the mesh and the command line need this module long before MindSpore
    from mindspore import dtype, nn


class RankGroup(NamedTuple):
    """A group that this rank belongs to: its kind, by which callers and errors name it, and its ranks in order."""

    kind: str
    ranks: tuple[int, ...]


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

    `start` maps the tensor to a handle, a tensor of the same shape and dtype whose numbers only `wait` may read; `wait`
    maps the handle to the result. In the backward pass `wait` starts the exchange of the gradient and `start` waits for
    it.
    """

    start: nn.Cell
    wait: nn.Cell


class AsyncAllReduce(NamedTuple):
    """Sums over a group that are started one by one, overlapped with other computation, and waited for together.

    `starts[i]` maps the i-th tensor <float32> and a control, any tensor, to a handle of its sum, which only `wait` may
    read, and the control: what is computed from the control comes after the start. `wait` maps the tuple of all
    handles, and a tensor that is to be computed before, to the tuple of sums. No Cell has a gradient.
    """

    starts: tuple[nn.Cell, ...]
    wait: nn.Cell


class UnevenRows(NamedTuple):
    """Fixed shapes of an `all_to_all_v`.

    Attributes:
        rows: of the send buffer.
        limit: rows of the receive buffer.
        advice: what the user can do if the latter is too small.
    """

    rows: int
    limit: int
    advice: str = ""


class Collectives(ABC):
    """Makes Cells that exchange tensors within the named groups of a `Topology`.

    P is the number of ranks of `group`, a kind of `locmoe_ops.topology.GROUP_KINDS`. Every rank of the group must
    run the Cell, with equal shapes and dtypes. `tag` names the call site in errors and must be the same on all its
    ranks and not be used elsewhere; a Cell may be run many times. Shapes are static. All Cells are differentiable:
    the objective is the sum over ranks of their local losses, and each Cell's backward is its exact adjoint (see
    `locmoe_ops.collectives.registry`). In a group of one rank every Cell is the identity.

    Args:
        rank: this rank.
        topology: the ranks of this job.
        gathered: whether `all_to_all` is made of an all-gather (see `locmoe_ops.collectives.gathered`).

    Attributes:
        used: operation, kind of group and purpose (see `locmoe_ops.collectives.registry.purpose_of`) of all Cells so
            far that exchange something, in the order of their firsts.
    """

    def __init__(self, rank: int, topology: Topology, gathered: bool = False) -> None:
        if not 0 <= rank < topology.world_size:
            raise InputError(f"collectives: rank {rank} is outside 0..{topology.world_size - 1}")
        self.rank = rank
        self.topology = topology
        self.gathered = gathered
        self.used: dict[tuple[str, str, str], None] = {}

    def all_to_all(self, group: str, tag: str) -> nn.Cell:
        """(P, ...) -> (P, ...): slice i goes to the i-th rank of the group. Adjoint: all_to_all."""
        found = self._group(group)
        if self.gathered and len(found.ranks) > 1:
            from locmoe_ops.collectives.gathered import GatheredAllToAll

            return GatheredAllToAll(self.all_gather(group, tag), len(found.ranks), found.ranks.index(self.rank))
        return self._cell_or_identity("all_to_all", group, tag)

    def all_to_all_async(self, group: str, tag: str) -> AsyncAllToAll:
        """`all_to_all` in two Cells. Every start must be followed by one wait, in the order of the starts. Gathered,
        the handle is P times as long, and the gradient's exchange does not overlap.
        """
        found = self._group(group)
        if len(found.ranks) == 1:
            from mindspore import nn

            return AsyncAllToAll(nn.Identity(), nn.Identity())
        if self.gathered:
            from locmoe_ops.collectives.gathered import OwnSlices

            own = OwnSlices(len(found.ranks), found.ranks.index(self.rank))
            return AsyncAllToAll(self.all_gather(group, tag), own)
        self._use("all_to_all", group, tag)
        return self._all_to_all_async(found, tag)

    def all_reduce_async(
        self, group: str, tag: str, shapes: Sequence[tuple[int, ...]], wire: dtype.Type | None = None
    ) -> AsyncAllReduce:
        """Sums over `group` of tensors of these `shapes`, in one vector. Once all have been started, `wait` must run.
        `tag` names the call site. Without `wire` the same bits as `HierarchicalAllReduce`'s; with it numbers travel in
        that type, as in `NarrowAllReduce`.
        """
        from locmoe_ops.collectives.hierarchical_reduce import StartAllReduce, WaitAllReduce, all_reduce_of

        return AsyncAllReduce(
            tuple(StartAllReduce() for _ in shapes), WaitAllReduce(all_reduce_of(self, group, tag, wire), shapes)
        )

    def all_to_all_v(self, group: str, tag: str, rows: int, limit: int, advice: str = "") -> nn.Cell:
        """An all-to-all of unequal parts of which only the real rows are sent.

        The Cell maps rows <float>[rows, d] and counts <int32>[P, P] to <float>[limit, d], where the i-th rank of the
        group sends counts[i, j] rows to the j-th: its first counts[i, 0] ones to the first rank, the next counts[i, 1]
        to the second, further ones nowhere. What is received lies in the order of ranks, with zeros after it. All ranks
        must give the same counts: gather them with `all_gather` first. Adjoint: the exchange back, with the counts
        transposed.

        More than `limit` rows to receive: on tcp the job ends with a CollectiveError that names tag, rank and rows and
        closes with `advice`; hccl, whose graphs cannot stop with a message, returns NaN throughout, or what the device
        makes of it. Who calls it must therefore compare counts and `limit`, and tell the host (see
        `locmoe_ops.dispatch.ragged`).
        """
        found = self._group(group)
        if len(found.ranks) == 1:
            from locmoe_ops.collectives.rows import KeepRows

            return KeepRows(rows, limit)
        if self.gathered:
            raise InputError(f"all_to_all_v {tag!r}: unequal parts cannot be gathered; expected a native all-to-all")
        self._use("all_to_all_v", group, tag)
        return self._uneven(found, tag, UnevenRows(rows, limit, advice))

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
        """Any shape; everyone gets the input of the `root`-th rank of `group`; `tag` names the call site. Adjoint: sum
        at root, else zeros.
        """
        size = len(self._group(group).ranks)
        if not 0 <= root < size:
            raise InputError(f"broadcast {tag!r}: root {root} is outside the {size} ranks of group {group}")
        return self._cell_or_identity("broadcast", group, tag, root)

    def _cell_or_identity(self, operation: str, group: str, tag: str, root: int = 0) -> nn.Cell:
        found = self._group(group)
        if len(found.ranks) == 1:
            from mindspore import nn

            return nn.Identity()
        self._use(operation, group, tag)
        return self._cell(operation, found, tag, root)

    def _use(self, operation: str, group: str, tag: str) -> None:
        self.used[operation, group, purpose_of(group, tag.partition("/")[0])] = None

    def _group(self, kind: str) -> RankGroup:
        return RankGroup(kind, self.topology.group_of(kind, self.rank))

    @abstractmethod
    def _cell(self, operation: str, group: RankGroup, tag: str, root: int) -> nn.Cell:
        """The Cell of `operation`, a name of `registry.COLLECTIVES`, in a group of several ranks."""

    @abstractmethod
    def _all_to_all_async(self, group: RankGroup, tag: str) -> AsyncAllToAll:
        """The Cells of `all_to_all_async` in a group of several ranks."""

    @abstractmethod
    def _uneven(self, group: RankGroup, tag: str, size: UnevenRows) -> nn.Cell:
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
