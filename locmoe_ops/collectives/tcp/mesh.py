"""A full mesh of TCP connections between ranks, with collectives on NumPy arrays.

A background thread moves bytes, so that a collective can be started, left alone and waited for. Every collective has a
tag; its runs are numbered per tag, so that ranks may be at different collectives without mixing them up. Whatever
goes wrong on one rank ends all ranks at once: each is told why before the connections close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from locmoe_ops.collectives.registry import COLLECTIVES
from locmoe_ops.collectives.tcp.engine import Engine
from locmoe_ops.collectives.tcp.operation import Operation
from locmoe_ops.collectives.tcp.rendezvous import Address, connect_ranks
from locmoe_ops.collectives.tcp.wire import collective_key
from locmoe_ops.errors import InputError


class MeshCounters(NamedTuple):
    """What this rank has moved since it joined; see `interface.CommunicationTimes` for the times (seconds)."""

    bytes_sent: np.ndarray  # int64 (world_size,): payload bytes by destination
    communication_s: float
    idle_s: float
    overlapped_s: float


def join_mesh(
    rank: int,
    world_size: int,
    root: Address,
    secret: bytes,
    bind: str = "127.0.0.1",
    join_timeout: float = 60.0,
    collective_timeout: float = 120.0,
    parent_pid: int | None = None,
) -> Mesh:
    """Connects this rank to all others; returns when every rank is connected.

    Args:
        rank: this rank, 0..world_size-1.
        world_size: ranks of the job.
        root: host and port where rank 0 listens while ranks join.
        secret: known to the ranks of this job only.
        bind: the local address to listen on and connect from.
        join_timeout: seconds in which all ranks must have joined.
        collective_timeout: seconds a collective may take from its start.
        parent_pid: a process whose end ends this rank's mesh; None: no such process.

    Raises:
        InputError: rank or address is unusable, or the root port is in use.
        CollectiveError: a rank did not join in time or was lost; the message names it.
    """
    if not 0 <= rank < world_size:
        raise InputError(f"mesh: rank {rank} is outside 0..{world_size - 1}")
    sockets = connect_ranks(rank, world_size, root, secret, bind, join_timeout) if world_size > 1 else {}
    return Mesh(rank, world_size, sockets, collective_timeout, parent_pid)


class Mesh(Engine):
    """Collectives of one rank. `start_*` begins one and returns its handle; the plain names also wait.

    `ranks` lists the group in its order, the same on all members, and holds this rank; P is their number. `tag` names
    the call site; what stands before its first slash is the cause that traffic is counted by. `array` is of any plain
    dtype, equal in shape on all ranks, and is not copied: it must not change before `wait` returns. `group` only makes
    errors readable. Results are new arrays. Methods may be called from any thread.

    Every method raises an InputError for ranks, shapes or counts that cannot be, and a CollectiveError once the mesh
    has failed or was closed.
    """

    @property
    def counters(self) -> MeshCounters:
        """Of all collectives."""
        return self.counters_of(None)

    def counters_of(self, cause: str | None) -> MeshCounters:
        """Of the collectives whose tag begins with `cause` and a slash; None: of all."""
        with self._lock:
            counted = [traffic for name, traffic in self._traffic.items() if cause in (None, name)]
            sent = sum((traffic.bytes_sent for traffic in counted), np.zeros(self.world_size, np.int64))
            seconds = sum((traffic.seconds for traffic in counted), np.zeros(3))
            return MeshCounters(sent, *map(float, seconds))

    def start_all_to_all(self, ranks: Sequence[int], tag: str, array: np.ndarray, group: str = "") -> Operation:
        """(P, ...) -> (P, ...): slice i of `array` goes to the i-th of `ranks`; `tag` and `group` as in the class."""
        if array.shape[:1] != (len(ranks),):
            raise InputError(f"all_to_all {tag!r}: shape {array.shape} for {len(ranks)} ranks")
        return self._start("all_to_all", ranks, tag, array, group)

    def start_all_to_all_v(
        self,
        ranks: Sequence[int],
        tag: str,
        array: np.ndarray,
        send_counts: np.ndarray,
        receive_counts: np.ndarray,
        limit: int,
        group: str = "",
    ) -> Operation:
        """(M, ...) -> (limit, ...): unequal parts of `array`; what is received lies in the order of ranks, then zeros.

        Args:
            ranks, tag, array, group: as in the class.
            send_counts: int (P,): the first send_counts[0] rows go to the first rank, the next to the second, etc.
            receive_counts: int (P,): rows from each rank, which must be what that rank sends.
            limit: rows of the result.
        """
        for name, counts, room in (("send", send_counts, len(array)), ("receive", receive_counts, limit)):
            if counts.shape != (len(ranks),) or counts.min() < 0 or counts.sum() > room:
                raise InputError(
                    f"all_to_all_v {tag!r}: {name} counts {counts.tolist()} for {len(ranks)} ranks and {room} rows"
                )
        own = list(ranks).index(self.rank) if self.rank in ranks else 0
        if send_counts[own] != receive_counts[own]:
            raise InputError(
                f"all_to_all_v {tag!r}: {receive_counts[own]} rows to receive from itself, {send_counts[own]} to send"
            )
        return self._start("all_to_all_v", ranks, tag, array, group, send_counts, receive_counts, limit)

    def start_all_gather(self, ranks: Sequence[int], tag: str, array: np.ndarray, group: str = "") -> Operation:
        """(n, ...) -> (P * n, ...): every `array` of `ranks`, in order; `tag` and `group` as in the class."""
        if not array.ndim:
            raise InputError(f"all_gather {tag!r}: a scalar has no first axis to gather along")
        return self._start("all_gather", ranks, tag, array, group)

    def start_reduce_scatter(self, ranks: Sequence[int], tag: str, array: np.ndarray, group: str = "") -> Operation:
        """(P * n, ...) -> (n, ...): the sum of everybody's i-th part of `array` at the i-th of `ranks`; `tag` and
        `group` as in the class.
        """
        if not array.ndim or len(array) % len(ranks):
            raise InputError(f"reduce_scatter {tag!r}: shape {array.shape} for {len(ranks)} ranks")
        return self._start("reduce_scatter", ranks, tag, array, group)

    def start_all_reduce(self, ranks: Sequence[int], tag: str, array: np.ndarray, group: str = "") -> Operation:
        """Any shape: the sum of every `array`, the same bits on all `ranks`; `tag` and `group` as in the class."""
        return self._start("all_reduce", ranks, tag, array, group)

    def start_hierarchical_all_reduce(
        self,
        ranks: Sequence[int],
        tag: str,
        array: np.ndarray,
        node: Sequence[int],
        rail: Sequence[int],
        group: str = "",
    ) -> Operation:
        """(n,) -> (n,): the sum, with the same bits on all ranks; each number crosses between nodes once for a node.

        Args:
            ranks, tag, array, group: as in the class; every node must hold equally many of `ranks`.
            node: ranks of the group that share this rank's node.
            rail: ranks of the group that have this rank's place on each node.
        """
        places = [[list(ranks).index(rank) for rank in members] for members in (node, rail)]
        return self._start("hierarchical_all_reduce", ranks, tag, array.reshape(-1), group, *places)

    def start_broadcast(
        self, ranks: Sequence[int], tag: str, array: np.ndarray, root: int = 0, group: str = ""
    ) -> Operation:
        """Any shape: the `array` of the `root`-th of `ranks`, on all; `tag` and `group` as in the class."""
        return self._start("broadcast", ranks, tag, array, group, root)

    def start_reduce(
        self, ranks: Sequence[int], tag: str, array: np.ndarray, root: int = 0, group: str = ""
    ) -> Operation:
        """Any shape: the sum of every `array` at the `root`-th of `ranks`, zeros elsewhere; `tag` and `group` as in the
        class.
        """
        return self._start("reduce", ranks, tag, array, group, root)

    def all_to_all(self, ranks: Sequence[int], tag: str, array: np.ndarray, group: str = "") -> np.ndarray:
        """`start_all_to_all` of `array` among `ranks` (`tag`, `group`), and its wait."""
        return self.start_all_to_all(ranks, tag, array, group).wait()

    def all_to_all_v(
        self,
        ranks: Sequence[int],
        tag: str,
        array: np.ndarray,
        send_counts: np.ndarray,
        receive_counts: np.ndarray,
        limit: int,
        group: str = "",
    ) -> np.ndarray:
        """`start_all_to_all_v` of `array` among `ranks` (`tag`, `group`), with `send_counts`, `receive_counts` and
        `limit` as there, and its wait.
        """
        return self.start_all_to_all_v(ranks, tag, array, send_counts, receive_counts, limit, group).wait()

    def all_gather(self, ranks: Sequence[int], tag: str, array: np.ndarray, group: str = "") -> np.ndarray:
        """`start_all_gather` of `array` among `ranks` (`tag`, `group`), and its wait."""
        return self.start_all_gather(ranks, tag, array, group).wait()

    def reduce_scatter(self, ranks: Sequence[int], tag: str, array: np.ndarray, group: str = "") -> np.ndarray:
        """`start_reduce_scatter` of `array` among `ranks` (`tag`, `group`), and its wait."""
        return self.start_reduce_scatter(ranks, tag, array, group).wait()

    def all_reduce(self, ranks: Sequence[int], tag: str, array: np.ndarray, group: str = "") -> np.ndarray:
        """`start_all_reduce` of `array` among `ranks` (`tag`, `group`), and its wait."""
        return self.start_all_reduce(ranks, tag, array, group).wait()

    def broadcast(
        self, ranks: Sequence[int], tag: str, array: np.ndarray, root: int = 0, group: str = ""
    ) -> np.ndarray:
        """`start_broadcast` of `array` from the `root`-th of `ranks` (`tag`, `group`), and its wait."""
        return self.start_broadcast(ranks, tag, array, root, group).wait()

    def reduce(self, ranks: Sequence[int], tag: str, array: np.ndarray, root: int = 0, group: str = "") -> np.ndarray:
        """`start_reduce` of `array` to the `root`-th of `ranks` (`tag`, `group`), and its wait."""
        return self.start_reduce(ranks, tag, array, root, group).wait()

    def barrier(self, ranks: Sequence[int], tag: str, group: str = "") -> None:
        """Returns when all of `ranks` have come here; `tag` and `group` as in the class."""
        self._start("barrier", ranks, tag, np.empty((0,), np.uint8), group).wait()

    def _start(
        self, name: str, ranks: Sequence[int], tag: str, array: np.ndarray, group: str, *details: Any
    ) -> Operation:
        """Begins the collective of this name; `details` are what its algorithm takes after the array."""
        spec = COLLECTIVES[name]
        members = self._checked(name, tag, ranks, details[0] if spec.has_root else 0)
        title = f"{name} {tag!r} on {group + ' ' if group else ''}{list(members)}"
        array = np.asarray(array, order="C")
        if array.dtype.hasobject:
            raise InputError(f"{title}: arrays of {array.dtype} cannot be sent")
        key = collective_key(name, tag, members)
        with self._lock:
            if self.failure is not None or self._closing:
                raise self.error_of(title)
            sequence = self._sequences[key] = self._sequences.get(key, -1) + 1
            operation = Operation(self, title, tag.partition("/")[0], members, key, sequence)
            self._launch(operation, spec.algorithm(operation, array, *details))
        return operation

    def _checked(self, name: str, tag: str, ranks: Sequence[int], root: int) -> tuple[int, ...]:
        members = tuple(int(rank) for rank in ranks)
        inside = all(0 <= rank < self.world_size for rank in members)
        if not inside or self.rank not in members or len(set(members)) < len(members):
            raise InputError(
                f"{name} {tag!r}: ranks {list(members)}, expected distinct ranks of "
                f"0..{self.world_size - 1}, rank {self.rank} among them"
            )
        if not 0 <= root < len(members):
            raise InputError(f"{name} {tag!r}: root {root} is outside the {len(members)} ranks of the group")
        return members
