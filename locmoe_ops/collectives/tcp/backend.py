"""Collectives on CPU: Python operations in the graph that exchange NumPy arrays over a `Mesh`.

They block, one after another, so all ranks must run them in one order. MindSpore's CPU runtime starts whatever is ready
first, and even changes between two ways of doing so by measuring itself; `fix_execution_order` makes it follow the
order that the compiler has chosen. That is not the program's order, but the same on every rank as long as the graphs
are equal, constants included. The compiler drops an operation whose result is not used and merges equal ones with
equal inputs, on all ranks alike.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mindspore import dtype, get_context, nn, ops, runtime

from locmoe_ops.collectives.interface import (
    AsyncAllReduce,
    AsyncAllToAll,
    BytesSent,
    Collectives,
    CommunicationTimes,
    RankGroup,
    UnevenRows,
)
from locmoe_ops.collectives.registry import COLLECTIVES, reduce_tiers
from locmoe_ops.collectives.tcp.mesh import Mesh
from locmoe_ops.collectives.tcp.operation import Operation
from locmoe_ops.collectives.tcp.python_operator import python_operator
from locmoe_ops.errors import InputError
from locmoe_ops.recompute import once
from locmoe_ops.topology import Topology


def fix_execution_order() -> None:
    """Makes graphs that are compiled from now on run their operations in the compiled order, one by one.

    Memory optimisation O1 plans memory for that order and therefore keeps to it; nothing else in MindSpore does.
    """
    if get_context("memory_optimize_level") != 1:
        runtime.set_memory(optimize_level="O1")


class TcpCollectives(Collectives):
    """Cells over `mesh`, which `close` closes. Made before the first graph is compiled (see the head of this file).

    Args:
        rank: this rank.
        topology: the ranks of this job.
        mesh: of the same rank and as many ranks (`join_mesh`).
        gathered: see `Collectives`.

    Raises:
        InputError: the mesh is that of another rank or job.
    """

    def __init__(self, rank: int, topology: Topology, mesh: Mesh, gathered: bool = False) -> None:
        super().__init__(rank, topology, gathered)
        if (mesh.rank, mesh.world_size) != (rank, topology.world_size):
            raise InputError(
                f"collectives: rank {rank} of {topology.world_size} was given the mesh of rank "
                f"{mesh.rank} of {mesh.world_size}"
            )
        fix_execution_order()
        self.mesh = mesh
        self._own_node = np.array(
            [topology.node_of(peer) == topology.node_of(rank) for peer in range(topology.world_size)]
        )

    def _cell(self, operation: str, group: RankGroup, tag: str, root: int) -> nn.Cell:
        spec = COLLECTIVES[operation]
        assert spec.adjoint is not None, f"{operation} has no gradient"
        details = {"root": root} if spec.has_root else {}
        return _ExchangeCell(
            _exchange(self.mesh, operation, group, tag, details),
            _exchange(self.mesh, spec.adjoint, group, f"{tag}/backward", details),
        )

    def _all_to_all_async(self, group: RankGroup, tag: str) -> AsyncAllToAll:
        forward = _start_and_wait(self.mesh, group, tag)
        backward = _start_and_wait(self.mesh, group, f"{tag}/backward")
        # The gradient is started where the result was waited for, and waited for where the exchange was started.
        return AsyncAllToAll(_ExchangeCell(forward.start, backward.wait), _ExchangeCell(forward.wait, backward.start))

    def all_reduce_async(
        self, group: str, tag: str, shapes: Sequence[tuple[int, ...]], wire: dtype.Type | None = None
    ) -> AsyncAllReduce:
        """One message over `group` for all tensors of these `shapes`, started with the last of them; `tag` and `wire`,
        which may be float16, as there. The mesh adds float16 in float32 and rounds the sum.
        """
        ranks = self._group(group).ranks
        if len(ranks) == 1:
            return super().all_reduce_async(group, tag, shapes, wire)
        tiers = [self._group(kind).ranks for kind in reduce_tiers(self.topology, group, self.rank)]

        def start(vector: np.ndarray) -> Operation:
            if len(tiers) == 1:
                return self.mesh.start_all_reduce(ranks, tag, vector, group=group)
            node, rail = tiers
            return self.mesh.start_hierarchical_all_reduce(ranks, tag, vector, node, rail, group=group)

        bucket = _Bucket(shapes, start, np.float32 if wire is None else np.float16)
        name = f"all_reduce_async {self.rank} {tiers} {tag} {shapes} {wire}"
        starts = tuple(_StartCell(bucket.adder(i), f"{name} start {i}") for i in range(len(shapes)))
        return AsyncAllReduce(starts, _WaitCell(shapes, bucket.wait, f"{name} wait"))

    def _uneven(self, group: RankGroup, tag: str, size: UnevenRows) -> nn.Cell:
        return _UnevenCell(
            _uneven_exchange(self.mesh, group, tag, size.limit, size.advice),
            _uneven_exchange(self.mesh, group, f"{tag}/backward", size.rows, size.advice),
            group.ranks.index(self.rank),
        )

    def barrier(self) -> None:
        self.mesh.barrier(self._group("world").ranks, "barrier", "world")

    def bytes_sent(self, cause: str | None = None) -> BytesSent:
        sent = self.mesh.counters_of(cause).bytes_sent
        return BytesSent(int(sent[self._own_node].sum()), int(sent[~self._own_node].sum()))

    def times(self, cause: str | None = None) -> CommunicationTimes:
        counters = self.mesh.counters_of(cause)
        return CommunicationTimes(counters.communication_s, counters.idle_s, counters.overlapped_s)

    def close(self) -> None:
        self.mesh.close()


class _ExchangeCell(nn.Cell):
    """One collective and, as its gradient, its adjoint."""

    def __init__(self, forward: ops.Custom, backward: ops.Custom) -> None:
        super().__init__()
        self.forward_exchange = forward
        self.backward_exchange = backward

    def construct(self, x: Any) -> Any:
        # A Python operation is handed scalars as Python numbers, which have no dtype.
        if x.ndim == 0:
            return self.forward_exchange(x.reshape((1,))).reshape(())
        return self.forward_exchange(x)

    def bprop(self, x: Any, out: Any, dout: Any) -> tuple[Any]:
        if dout.ndim == 0:
            return (self.backward_exchange(dout.reshape((1,))).reshape(()),)
        return (self.backward_exchange(dout),)


class _UnevenCell(nn.Cell):
    """An exchange of unequal parts and, as its gradient, the exchange back; `index` is this rank's in the group."""

    def __init__(self, forward: ops.Custom, backward: ops.Custom, index: int) -> None:
        super().__init__()
        self.forward_exchange = forward
        self.backward_exchange = backward
        self.index = index

    def construct(self, rows: Any, counts: Any) -> Any:
        return self.forward_exchange(rows, counts[self.index], counts[:, self.index])

    def bprop(self, rows: Any, counts: Any, out: Any, dout: Any) -> tuple[Any, Any]:
        return self.backward_exchange(dout, counts[:, self.index], counts[self.index]), ops.zeros_like(counts)


class _Bucket:
    """Tensors that are sent in one message: copied in one by one, sent with the last, then ready for the next step.

    Args:
        shapes: of the tensors, which are float32.
        start: begins the sum of the vector of all numbers.
        wire: type of that vector.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], start: Callable[[np.ndarray], Operation], wire: type = np.float32
    ) -> None:
        ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
        self._places = [slice(end - math.prod(shape), end) for shape, end in zip(shapes, ends)]
        self._vector: np.ndarray = np.empty(ends[-1], wire)
        self._start = start
        self._missing = len(shapes)
        self._operation: Operation | None = None

    def adder(self, index: int) -> Callable[[np.ndarray], np.ndarray]:
        """The Python operation that takes the tensor of this index and returns its handle."""

        def add(array: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):  # Inf is how an overflow shows
                self._vector[self._places[index]] = array.reshape(-1)
            self._missing -= 1
            if not self._missing:
                self._operation = self._start(self._vector)
            return np.empty_like(array)

        return add

    def wait(self, handle: np.ndarray) -> np.ndarray:
        """The Python operation that returns the sums, one after another."""
        assert self._operation is not None, "waited for before all tensors had been started"
        operation, self._operation, self._missing = self._operation, None, len(self._places)
        return operation.wait().astype(np.float32, copy=False)


class _StartCell(nn.Cell):
    """Start of an `AsyncAllReduce`. The tie to the control makes it run where it stands in the program: the compiler
    would leave it for the end, as nothing else waits for it.
    """

    def __init__(self, start: Callable[[np.ndarray], np.ndarray], name: str) -> None:
        super().__init__(auto_prefix=False)
        self.start = python_operator(start, list, _same_dtype, name)
        self.depend = ops.Depend()

    def construct(self, tensor: Any, control: Any) -> tuple[Any, Any]:
        handle = self.start(tensor)
        return handle, self.depend(control, handle)


_as_shaped = ops.MultitypeFuncGraph("as_shaped")


@_as_shaped.register("Tensor", "Tensor")
def _as_shaped_one(flat: Any, like: Any) -> Any:
    return ops.reshape(flat, like.shape)


class _WaitCell(nn.Cell):
    """Wait of an `AsyncAllReduce` of tensors of these `shapes`."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], wait: Callable[[np.ndarray], np.ndarray], name: str) -> None:
        super().__init__(auto_prefix=False)
        self.sizes = tuple(math.prod(shape) for shape in shapes)
        size = sum(self.sizes)
        self.map = ops.HyperMap()
        self.wait = python_operator(wait, lambda shape: [size], _same_dtype, name)
        self.depend = ops.Depend()

    def construct(self, handles: tuple[Any, ...], after: Any) -> tuple[Any, ...]:
        parts = ops.split(self.wait(self.depend(handles[0], (handles, after))), self.sizes)
        return self.map(_as_shaped, parts, handles)


def _exchange(mesh: Mesh, operation: str, group: RankGroup, tag: str, details: dict[str, int]) -> ops.Custom:
    """The Python operation that runs the collective of this name on the mesh."""
    collective, output_shape = getattr(mesh, operation), COLLECTIVES[operation].output_shape
    assert output_shape is not None

    def run(array: np.ndarray) -> np.ndarray:
        return collective(group.ranks, tag, array, group=group.kind, **details)

    def shape(of_input: Any) -> list[int]:
        return output_shape(of_input, len(group.ranks))

    name = f"{operation} {mesh.rank} {group} {tag} {details}"
    return once(python_operator(run, shape, _same_dtype, name))


def _uneven_exchange(mesh: Mesh, group: RankGroup, tag: str, limit: int, advice: str) -> ops.Custom:
    """The Python operation that runs `all_to_all_v` on the mesh."""

    def run(rows: np.ndarray, send_counts: np.ndarray, receive_counts: np.ndarray) -> np.ndarray:
        arriving = int(receive_counts.sum())
        if arriving > limit:
            mesh.abort(f"{tag}: {arriving} rows arrive, room for {limit}{advice and '; ' + advice}")
        return mesh.all_to_all_v(group.ranks, tag, rows, send_counts, receive_counts, limit, group=group.kind)

    def shape(rows: Any, send_counts: Any, receive_counts: Any) -> list[int]:
        return [limit, *rows[1:]]

    def dtype(rows: Any, send_counts: Any, receive_counts: Any) -> Any:
        return rows

    return once(python_operator(run, shape, dtype, f"all_to_all_v {mesh.rank} {group} {tag} {limit} {advice}"))


class _StartAndWait(NamedTuple):
    """The two Python operations of an all-to-all."""

    start: ops.Custom
    wait: ops.Custom


def _start_and_wait(mesh: Mesh, group: RankGroup, tag: str) -> _StartAndWait:
    """Exchanges are waited for in the order in which they were started."""
    running: deque[Operation] = deque()

    def start(array: np.ndarray) -> np.ndarray:
        # The graph may use the input's memory for something else as soon as this returns.
        running.append(mesh.start_all_to_all(group.ranks, tag, array.copy(), group=group.kind))
        return np.empty_like(array)

    def wait(handle: np.ndarray) -> np.ndarray:
        return running.popleft().wait()

    name = f"all_to_all_async {mesh.rank} {group} {tag}"
    return _StartAndWait(
        once(python_operator(start, list, _same_dtype, f"{name} start")),
        once(python_operator(wait, list, _same_dtype, f"{name} wait")),
    )


def _same_dtype(dtype: Any) -> Any:
    return dtype
