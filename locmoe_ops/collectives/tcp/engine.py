"""The machinery of a mesh: matches messages with collectives, moves bytes in the background, ends all ranks together.

One lock guards everything; a caller that starts a collective sends what the kernel takes at once, the progress
thread does the rest.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from locmoe_ops.collectives.tcp.algorithms import Algorithm
from locmoe_ops.collectives.tcp.launcher import LauncherWatch
from locmoe_ops.collectives.tcp.link import PeerLink, byte_view
from locmoe_ops.collectives.tcp.operation import MessageKey, Operation
from locmoe_ops.collectives.tcp.wire import BYE, DATA, FAIL, FrameHeader
from locmoe_ops.errors import CollectiveError, rank_names

_FAILURE_LINGER_SECONDS = 2.0  # for last words to reach peers that are slow or stuck
_CLOSE_LINGER_SECONDS = 1.0
NOTICE_SECONDS = 5.0
_TICK_SECONDS = 0.25  # how late a deadline or a vanished launcher may be noticed
_ENDING_TICK_SECONDS = 0.02
_MAX_TEXT_BYTES = 1 << 16


class CauseTraffic(NamedTuple):
    """What one cause has moved.

    Attributes:
        bytes_sent: <int64>[world_size], by destination.
        seconds: <float64>[3], of communication, idle and overlapped.
    """

    bytes_sent: np.ndarray
    seconds: np.ndarray


class Engine:
    """State and progress thread of one rank; `Mesh` adds the collectives.

    Args:
        rank, world_size: this rank, and the ranks of the job.
        sockets: a connected socket to every other rank, by rank.
        collective_timeout: seconds a collective may take from its start.
        parent_pid: a process whose end ends this rank's mesh; None: no such process.

    Attributes:
        failure: the first error, or None; when set, every pending and later collective raises.
        on_failure: called once with `failure`, at once and from the progress thread: a launcher may end the process
            before the caller is back from compiled code to say why.
        on_unnoticed: called after it if the mesh is not closed within `NOTICE_SECONDS` of the failure: the caller is
            busy elsewhere, for example compiling, and does not notice.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        sockets: dict[int, socket.socket],
        collective_timeout: float,
        parent_pid: int | None,
    ) -> None:
        self.rank, self.world_size, self.collective_timeout = rank, world_size, collective_timeout
        self.failure: CollectiveError | None = None
        self.on_failure: Callable[[CollectiveError], None] | None = None
        self.on_unnoticed: Callable[[CollectiveError], None] | None = None
        self._lock = threading.RLock()
        self._cause = ""
        self._last_title = ""
        self._announced = False
        self._closing = False
        self._closed = threading.Event()
        self._end_by = float("inf")
        self._links = {peer: PeerLink(peer, sock) for peer, sock in sockets.items()}
        self._operations: dict[int, Operation] = {}
        self._posted: dict[MessageKey, Operation] = {}
        self._unexpected: dict[MessageKey, memoryview] = {}
        self._sequences: dict[bytes, int] = {}
        self._traffic: dict[str, CauseTraffic] = {}
        self._launcher = LauncherWatch(parent_pid)
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name=f"mesh-{rank}", daemon=True)
        self._push()
        self._thread.start()

    def abort(self, reason: str) -> None:
        """Ends the job on all ranks; each raises an error that says that this rank stopped for `reason`."""
        with self._lock:
            self._announced = True  # the caller knows
            self._fail(f"rank {self.rank} stopped ({reason})")

    def close(self) -> None:
        """Says goodbye to the peers and ends the thread, in about a second at most. May be called again."""
        self._closed.set()
        with self._lock:
            if not self._closing:
                for operation in list(self._operations.values()):
                    operation.fail(CollectiveError(f"rank {self.rank}: {operation.title}: the mesh was closed"))
                if self.failure is None:
                    self._end(BYE, "", _CLOSE_LINGER_SECONDS)
                self._closing = True
                self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(_FAILURE_LINGER_SECONDS + 1.0)

    def _launch(self, operation: Operation, algorithm: Algorithm) -> None:
        """Registers and begins an operation; called under the lock."""
        self._last_title = operation.title
        self._operations[id(operation)] = operation
        try:
            operation.run(algorithm)
        except Exception as error:
            self._fail(f"rank {self.rank} stopped ({error!r})", operation)
            raise
        self._push()
        self._check_left(operation)

    # Called by operations (see `OperationEngine`); all but `add_times` under the lock.

    def post_send(self, operation: Operation, key: MessageKey, array: np.ndarray) -> None:
        """Queues the bytes of `array`, a message of `operation`, for the peer that `key` names."""
        view = byte_view(array)
        header = FrameHeader(DATA, key.phase, key.sequence, len(view), key.key)
        if not self._links[key.peer].enqueue(header, view, operation):
            operation.unsendable()

    def post_receive(self, operation: Operation, key: MessageKey, array: np.ndarray) -> None:
        """Has `array` filled for `operation` by the message that matches `key`, which may have come already."""
        view = byte_view(array)
        body = self._unexpected.pop(key, None)
        if body is not None:
            self._fill(operation, key, view, body)
            return
        operation.pending_receives[key] = view
        self._posted[key] = operation

    def clogged_peers(self, operation: Operation) -> set[int]:
        """Peers to which messages of `operation` are still queued."""
        return {link.peer for link in self._links.values() if link.holds_messages_of(operation)}

    def count_sent(self, cause: str, peer: int, payload_bytes: int) -> None:
        """Adds `payload_bytes` sent to rank `peer` to the traffic of `cause`."""
        self._traffic_of(cause).bytes_sent[peer] += payload_bytes

    def forget(self, operation: Operation) -> None:
        """Drops `operation`, which has ended, and what it still waited for."""
        self._operations.pop(id(operation), None)
        for key in operation.pending_receives:
            self._posted.pop(key, None)

    def add_times(self, cause: str, communication: float, idle: float, overlapped: float) -> None:
        """Adds seconds of `communication`, `idle` and `overlapped` to the times of `cause`."""
        with self._lock:
            self._traffic_of(cause).seconds[:] += (communication, idle, overlapped)

    def _traffic_of(self, cause: str) -> CauseTraffic:
        if cause not in self._traffic:
            self._traffic[cause] = CauseTraffic(np.zeros(self.world_size, np.int64), np.zeros(3))
        return self._traffic[cause]

    # Called by links (see `link.Receiver`), under the lock.

    def buffer_for(self, link: PeerLink, header: FrameHeader) -> memoryview:
        """The posted buffer that the message of `header` fills, or a new one where none of its size is posted."""
        if header.kind != DATA:
            if header.length > _MAX_TEXT_BYTES:
                raise ConnectionError("malformed message")
            return memoryview(bytearray(header.length))
        key = MessageKey(link.peer, header.key, header.sequence, header.phase)
        operation = self._posted.get(key)
        if operation is not None:
            operation.last_first_byte = time.monotonic()
            if len(operation.pending_receives[key]) == header.length:
                return operation.pending_receives[key]
        return byte_view(np.empty(header.length, np.uint8))

    def received(self, link: PeerLink, header: FrameHeader, body: memoryview) -> None:
        """Acts on a whole message of the peer of `link`: `body`, as `header` describes it."""
        if header.kind == FAIL:
            self._fail(bytes(body).decode(errors="replace"), relayed=True)
        elif header.kind == BYE:
            link.left = True
            for pending in list(self._operations.values()):
                self._check_left(pending)
        else:
            key = MessageKey(link.peer, header.key, header.sequence, header.phase)
            operation = self._posted.pop(key, None)
            if operation is None:
                self._unexpected[key] = body
            else:
                self._fill(operation, key, operation.pending_receives.pop(key), body)
                operation.advance()

    def _fill(self, operation: Operation, key: MessageKey, view: memoryview, body: memoryview) -> None:
        if len(view) != len(body):
            self._fail(
                f"rank {key.peer} sent {len(body)} bytes where rank {self.rank} expected {len(view)}; "
                "shapes or dtypes differ between ranks",
                operation,
            )
        elif view is not body:
            view[:] = body

    # The end of things.

    def _fail(self, cause: str, operation: Operation | None = None, relayed: bool = False) -> None:
        """Fails everything pending and tells the peers; only the first call counts."""
        if self.failure is not None or self._closing:
            return
        self._cause = cause
        first = operation or next(iter(self._operations.values()), None)
        title = first.title if first is not None else f"after {self._last_title or 'joining the mesh'}"
        self.failure = self.error_of(title)
        self._end(FAIL, cause if relayed else f"{cause}; told by rank {self.rank}, {title}", _FAILURE_LINGER_SECONDS)
        for pending in list(self._operations.values()):
            pending.fail(self.error_of(pending.title))
        self._wake()

    def error_of(self, title: str) -> CollectiveError:
        """Why the collective of this `title` cannot be done, once the mesh has failed or was closed."""
        return CollectiveError(f"rank {self.rank}: {title}: {self._cause or 'the mesh was closed'}")

    def _end(self, kind: int, text: str, linger: float) -> None:
        self._end_by = time.monotonic() + linger
        for link in self._links.values():
            link.send_last(kind, text)
        self._push()

    def _check_left(self, operation: Operation) -> None:
        """A peer that has left sends nothing more: fails the operation if it waits for that peer."""
        for key in operation.pending_receives:
            if self._links[key.peer].left:
                self._fail(f"rank {key.peer} has left the job", operation)
                return

    # The progress thread.

    def _run(self) -> None:
        try:
            while not self._finished():
                self._poll()
                if self.failure is not None and not self._announced:
                    self._announced = True
                    self._notify(self.on_failure)
        except Exception as error:  # a bug here must end the job, not hang it
            with self._lock:
                self._fail(f"internal error of rank {self.rank}: {error!r}")
        with self._lock:
            self._selector.close()
            for link in self._links.values():
                link.sock.close()
            self._wake_reader.close()
            self._wake_writer.close()
        if self.failure is not None and not self._closed.wait(NOTICE_SECONDS):
            self._notify(self.on_unnoticed)

    def _notify(self, listener: Callable[[CollectiveError], None] | None) -> None:
        if listener is not None and self.failure is not None:
            listener(self.failure)

    def _finished(self) -> bool:
        if self._end_by == float("inf"):
            return False
        quiet = all(link.ended and not link.wants_to_write for link in self._links.values())
        return quiet or time.monotonic() > self._end_by

    def _poll(self) -> None:
        """Takes in what has come, looks at deadline and launcher, and sends what the kernel takes."""
        ending = self._end_by < float("inf")
        events = self._selector.select(_ENDING_TICK_SECONDS if ending else min(_TICK_SECONDS, self.collective_timeout))
        with self._lock:
            for key, mask in events:
                if key.data is None:
                    self._wake_reader.recv(4096)
                elif mask & selectors.EVENT_READ:
                    self._read(key.data)
            if self._end_by == float("inf"):
                oldest = next(iter(self._operations.values()), None)
                if oldest is not None and time.monotonic() > oldest.deadline:
                    missing = rank_names(oldest.missing_ranks())
                    self._fail(f"no data from {missing} within {self.collective_timeout:g} s", oldest)
                if self._launcher.gone():
                    self._fail(f"the launcher of rank {self.rank} (process {self._launcher.pid}) is gone")
            self._push()

    def _read(self, link: PeerLink) -> None:
        try:
            link.read(self)
        except OSError as error:
            link.ended = True
            if not link.left:
                self._fail(f"lost rank {link.peer} ({(error.strerror or str(error)).lower()})")

    def _push(self) -> None:
        """Sends what the kernel takes, and asks the selector for what the links wait for."""
        for link in self._links.values():
            if link.wants_to_write:
                link.flush()
            if self._end_by < float("inf"):
                link.finish_sending()
            wanted = link.wanted_events
            if wanted == link.armed_events:
                continue
            if not wanted:
                self._selector.unregister(link.sock)
            elif link.armed_events:
                self._selector.modify(link.sock, wanted, link)
            else:
                self._selector.register(link.sock, wanted, link)
            link.armed_events = wanted

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b"\0")
        except OSError:  # full: it is awake already; closed: it has ended
            pass
