"""Collectives as MindSpore's own primitives, for Ascend (graphs with them also compile, but do not run, on CPU); in
PyNative mode as its functions (see `locmoe_ops.collectives.hccl_functions`).

Shape legend: M rows of an uneven exchange, P ranks of its group, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mindspore import Tensor, __version__, dtype, nn, ops
from mindspore.communication import GlobalComm, create_group

from locmoe_ops.collectives.hccl_functions import AsyncFunction, ProcessGroup, group_function
from locmoe_ops.collectives.interface import (
    AsyncAllToAll,
    BytesSent,
    Collectives,
    CommunicationTimes,
    RankGroup,
    UnevenRows,
)
from locmoe_ops.collectives.rank_numbers import ExchangeGraph
from locmoe_ops.collectives.registry import COLLECTIVES, LAYERS, purpose_of
from locmoe_ops.collectives.rows import ExtraRow, within
from locmoe_ops.errors import InputError
from locmoe_ops.recompute import once
from locmoe_ops.topology import Topology

TAG, PHASE = "locmoe_tag", "locmoe_phase"  # attributes of the primitives
FORWARD, BACKWARD = "forward", "backward"
Operator = Callable[..., Any]  # a primitive, or a function that is called like it


class HcclCollectives(Collectives):
    """Cells of communication primitives or functions; `mindspore.communication.init` comes before.

    A process group, of ranks and a purpose (see `purpose_of`), is created with the first Cell that needs it, since each
    takes device memory. Every rank must therefore make its Cells in the same order, as ranks that build the same model
    do.

    Args:
        rank: this rank.
        topology: the ranks of this job.
        job: how the names of its process groups begin. MindSpore cannot make a group anew that it has destroyed: a
            process in which several topologies follow each other gives each its own.
        gathered: see `Collectives`.
        eager: Cells call functions, for PyNative mode; False: they hold primitives, for graphs. Not both in one job,
            which HCCL forbids.
    """

    def __init__(
        self, rank: int, topology: Topology, job: str = "locmoe", gathered: bool = False, eager: bool = False
    ) -> None:
        super().__init__(rank, topology, gathered)
        self._job, self._eager = job, eager
        self._names = {(topology.group_of("world", rank), LAYERS): GlobalComm.WORLD_COMM_GROUP}
        self._meeting: nn.Cell | None = None

    def _cell(self, operation: str, group: RankGroup, tag: str, root: int) -> nn.Cell:
        there, back = self._operators(operation, group, tag, root)
        if operation == "broadcast":
            return _Broadcast(there, _Sum(back), group.ranks[root] == self.rank)
        if operation == "all_reduce":
            return _Exchange(_Sum(there), _Sum(back))
        return _Exchange(there, back)

    def _all_to_all_async(self, group: RankGroup, tag: str) -> AsyncAllToAll:
        """The primitive where the exchange is started. MindSpore launches it on the stream of its communicator, after
        what was launched before it, and computation waits where the result is used (see `purpose_of`). In PyNative mode
        the wait is a call of its own.
        """
        if self._eager:
            there, back = (AsyncFunction(self._process_group(group, tag)) for _ in range(2))
            return AsyncAllToAll(_Exchange(there.start, back.wait), _Exchange(there.wait, back.start))
        forward, backward = self._operators("all_to_all", group, tag)
        return AsyncAllToAll(_Forward(forward), _Backward(backward))

    def _uneven(self, group: RankGroup, tag: str, size: UnevenRows) -> nn.Cell:
        operators = self._operators("all_to_all_v", group, tag)
        return _Uneven(*operators, group.ranks.index(self.rank), len(group.ranks), size)

    def _operators(self, operation: str, group: RankGroup, tag: str, root: int = 0) -> tuple[Operator, Operator]:
        """What does `operation`, and what does its adjoint."""
        adjoint = "all_reduce" if operation == "broadcast" else COLLECTIVES[operation].adjoint
        assert adjoint is not None, f"{operation} has no gradient"
        place = self._process_group(group, tag)
        if self._eager:
            return group_function(operation, place, root), group_function(adjoint, place, backward=True)
        there, back = _primitive(operation, place, root), _primitive(adjoint, place)
        if operation == "all_to_all_v":
            back = back.add_prim_attr("transpose", True)  # of the counts, as its own gradient has it
        return _named(there, tag, FORWARD), _named(back, tag, BACKWARD)

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Members of the process groups made so far, by name, in the order in which they were made."""
        return {name: ranks for (ranks, _), name in self._names.items()}

    def _process_group(self, group: RankGroup, tag: str) -> ProcessGroup:
        return ProcessGroup(self._group_name(group, tag), group.ranks, group.ranks.index(self.rank))

    def _group_name(self, group: RankGroup, tag: str) -> str:
        """MindSpore's name of the process group for what `tag` names, which is made if it is not there yet."""
        kind, ranks = group
        purpose = purpose_of(kind, tag.partition("/")[0])
        if (ranks, purpose) not in self._names:
            name = f"{self._job}_{kind}_{ranks[0]}_{len(ranks)}" + ("" if purpose == LAYERS else f"_{purpose}")
            create_group(name, list(ranks))
            self._names[ranks, purpose] = name
        return self._names[ranks, purpose]

    def barrier(self) -> None:
        """Returns when every rank of the world has called it. A sum in a graph of its own: HCCL's documentation
        forbids operators by themselves, as `ops.Barrier` would be, in a group that graphs use too.
        """
        if self.topology.world_size == 1:
            return
        if self._meeting is None:
            self._meeting = ExchangeGraph(self.all_reduce("world", "barrier"))
        self._meeting(Tensor(np.ones(1, np.float32))).asnumpy()

    def bytes_sent(self, cause: str | None = None) -> BytesSent:
        """Not counted: the primitives move data without passing through this process's Python."""
        return BytesSent(0, 0, counted=False)

    def times(self, cause: str | None = None) -> CommunicationTimes:
        """Not measured; the profiler of MindSpore does."""
        return CommunicationTimes(0.0, 0.0)

    def close(self) -> None:
        """The process groups end with the process."""


def _named(primitive: ops.Primitive, tag: str, phase: str) -> ops.Primitive:
    """The primitive with `tag` and phase as attributes, by which an exported graph can be read (see
    `pangu_sigma.audit`). Where layers are recomputed it does not communicate again.
    """
    return once(primitive.add_prim_attr(TAG, tag).add_prim_attr(PHASE, phase))


def _primitive(operation: str, group: ProcessGroup, root: int = 0) -> ops.Primitive:
    """The primitive of a collective in a process group; `root`: of a broadcast, its place in the group.

    Raises InputError: the installed MindSpore has it not.
    """
    name = COLLECTIVES[operation].primitive
    assert name is not None, f"hccl has no {operation}"
    kind = getattr(ops, name, None)
    if kind is None:  # AlltoAllVC came with 2.7.1
        raise InputError(
            f"collectives: backend hccl does {operation} by mindspore.ops.{name}, which MindSpore {__version__} has "
            "not; expected 2.7.1 or newer"
        )
    if operation == "all_to_all":
        return kind(split_count=len(group.ranks), split_dim=0, concat_dim=0, group=group.name)
    if operation == "broadcast":
        return kind(group.ranks[root], group.name)
    if operation in ("all_reduce", "reduce_scatter"):
        return kind(ops.ReduceOp.SUM, group.name)
    return kind(group.name)


class _Exchange(nn.Cell):
    """A collective, a primitive or a Cell, and as its gradient its adjoint."""

    def __init__(self, forward: Any, backward: Any) -> None:
        super().__init__()
        self.forward_exchange = forward
        self.backward_exchange = backward

    def construct(self, x: Any) -> Any:
        return self.forward_exchange(x)

    def bprop(self, x: Any, out: Any, dout: Any) -> tuple[Any]:
        return (self.backward_exchange(dout),)


class _Forward(nn.Cell):
    """A primitive whose gradient has already been exchanged, by `_Backward`."""

    def __init__(self, exchange: ops.Primitive) -> None:
        super().__init__()
        self.exchange = exchange

    def construct(self, x: Any) -> Any:
        return self.exchange(x)

    def bprop(self, x: Any, out: Any, dout: Any) -> tuple[Any]:
        return (dout,)


class _Backward(nn.Cell):
    """The identity, whose gradient is exchanged."""

    def __init__(self, exchange: ops.Primitive) -> None:
        super().__init__()
        self.exchange = exchange

    def construct(self, x: Any) -> Any:
        return x

    def bprop(self, x: Any, out: Any, dout: Any) -> tuple[Any]:
        return (self.exchange(dout),)


class _Uneven(nn.Cell):
    """AlltoAllVC between two gathers, and as its gradient the same with the counts transposed.

    The primitive takes the counts of all ranks; with those of this rank alone, AlltoAllV, HCCL gathers them first. The
    host reads them before each call, hence waits for the device (MindSpore 2.10, HcomAlltoAllVCKernel::Resize); the
    audit counts these calls.

    The primitive's result has as many rows as are received: a shape that only the run knows, which a graph that goes to
    the device as a whole does not take. The gather after it has a fixed shape again. Each rank sends itself one row
    more, behind its own, which the gather leaves out: the primitive would return an empty result without its second
    axis.

    Where more rows may come than there is room for, the counts are cut to it before HCCL sees them: on the way back it
    would read beyond the buffer's end. What then arrives is void, and so marked (see `Collectives.all_to_all_v`).
    """

    def __init__(self, there: Operator, back: Operator, index: int, ranks: int, size: UnevenRows) -> None:
        super().__init__()
        self.send = ExtraRow(index, size.rows)
        self.receive = ExtraRow(index, size.limit)
        self.there, self.back = there, back
        self.index, self.limited = index, bool(size.advice)
        self.most_sent, self.most_received = size.rows, size.limit
        self.one_more = Tensor(np.eye(ranks, dtype=np.int64))  # of every rank to itself
        self.cast, self.reshape, self.zeros = ops.Cast(), ops.Reshape(), ops.ZerosLike()

    def construct(self, rows: Any, counts: Any) -> Any:
        moved = self._moved(counts)
        received = self._exchanged(self.there, self.send.put_in(rows, moved[self.index]), moved)
        return self.receive.take_out(received, moved[:, self.index], counts[:, self.index])

    def bprop(self, rows: Any, counts: Any, out: Any, dout: Any) -> tuple[Any, Any]:
        moved = self._moved(counts)
        received = self._exchanged(self.back, self.receive.put_in(dout, moved[:, self.index]), moved)
        return self.send.take_out(received, moved[self.index], moved[self.index]), self.zeros(counts)

    def _moved(self, counts: Any) -> Any:
        if not self.limited:
            return counts
        return within(within(counts, 1, self.most_sent), 0, self.most_received)

    def _exchanged(self, exchange: Operator, rows: Any, counts: Any) -> Any:
        width = rows.shape[1]
        received = exchange(
            self.reshape(rows, (-1,)),  # (M * d,) <- (M, d)
            (self.cast(counts, dtype.int64) + self.one_more) * width,
        )
        return self.reshape(received, (-1, width))  # (M, d) <- (M * d,)


class _Sum(nn.Cell):
    """AllReduce between two reshapes.

    MindSpore's compiler rewrites `AddN(AllReduce(x) * y, z)`, as backward passes often have it, into
    `AllReduce(AddN(x, z)) * y`, which is another function unless y is a mean's factor and z is the same everywhere. A
    reshape between sum and product costs nothing and hides the pattern; a Depend does not, it is removed.
    """

    def __init__(self, all_reduce: Operator) -> None:
        super().__init__()
        self.all_reduce = all_reduce

    def construct(self, x: Any) -> Any:
        return ops.reshape(self.all_reduce(ops.reshape(x, (1,) + x.shape)), x.shape)  # (...) <- (1, ...) <- (...)


class _Broadcast(nn.Cell):
    """Broadcast, whose gradient is the sum of all gradients at the root, zeros elsewhere."""

    def __init__(self, broadcast: Operator, total: nn.Cell, is_root: bool) -> None:
        super().__init__()
        self.broadcast = broadcast
        self.sum = total
        self.depend = ops.Depend()
        self.is_root = is_root

    def construct(self, x: Any) -> Any:
        return self.broadcast((x,))[0]

    def bprop(self, x: Any, out: Any, dout: Any) -> tuple[Any]:
        total = self.sum(dout)
        if self.is_root:
            return (total,)
        # Depend keeps the sum in the graph of ranks that do not use it: all ranks must take part.
        return (self.depend(ops.zeros_like(dout), total),)
