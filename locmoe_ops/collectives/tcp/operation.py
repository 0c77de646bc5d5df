"""One run of a collective on one rank: what it still waits for, when it began and ended, and its result."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple, Protocol

import numpy as np

from locmoe_ops.collectives.tcp.algorithms import Algorithm
from locmoe_ops.collectives.tcp.link import PeerLink
from locmoe_ops.errors import CollectiveError

_OVERDUE_SECONDS = 10.0  # beyond the deadline, which the progress thread enforces as long as it lives


class MessageKey(NamedTuple):
    """What a message must match to fill a posted buffer: its sender, the call site, the run of it, and the round.

    Attributes:
        peer: rank that sends or receives the message.
        key: 16 bytes of `wire.collective_key`, which stand for the call site.
        sequence: number of this run of the call site, from 0.
        phase: round of the algorithm, from 0.
    """

    peer: int
    key: bytes
    sequence: int
    phase: int


class OperationEngine(Protocol):
    """What an operation asks of the engine that runs it (`engine.Engine`)."""

    rank: int
    collective_timeout: float

    def abort(self, reason: str) -> None:
        """Ends the job on all ranks for `reason`."""

    def post_send(self, operation: Operation, key: MessageKey, array: np.ndarray) -> None:
        """Queues the bytes of `array`, a message of `operation`, for the peer that `key` names."""

    def post_receive(self, operation: Operation, key: MessageKey, array: np.ndarray) -> None:
        """Has `array` filled for `operation` by the message that matches `key`."""

    def clogged_peers(self, operation: Operation) -> set[int]:
        """Peers to which messages of `operation` are still queued."""

    def count_sent(self, cause: str, peer: int, payload_bytes: int) -> None:
        """Adds `payload_bytes` sent to rank `peer` to the traffic of `cause`."""

    def add_times(self, cause: str, communication: float, idle: float, overlapped: float) -> None:
        """Adds seconds of `communication`, `idle` and `overlapped` to the times of `cause`; takes the lock itself."""

    def forget(self, operation: Operation) -> None:
        """Drops `operation`, which has ended, and what it still waited for."""


class Operation:
    """A started collective; `wait` returns its result. Made by `Mesh.start_*` only.

    The array given to `start_*` must not change before `wait` returns.

    Args:
        engine: moves the bytes.
        title: collective, tag and group, as errors name them.
        cause: what its bytes and seconds are counted by.
        ranks: members of the group in its order, this rank among them.
        key, sequence: call site and run, as in `MessageKey`.

    Attributes:
        index, size: place of this rank among the `size` ranks.
        deadline: of `time.monotonic`.
        pending_receives: buffers that messages of this round have yet to fill.
        last_first_byte: when the first byte of the latest peer of this round came.
    """

    def __init__(
        self, engine: OperationEngine, title: str, cause: str, ranks: tuple[int, ...], key: bytes, sequence: int
    ) -> None:
        self.title = title
        self.cause = cause
        self.ranks = ranks
        self.index = ranks.index(engine.rank)
        self.size = len(ranks)
        self.started = time.monotonic()
        self.deadline = self.started + engine.collective_timeout
        self.pending_receives: dict[MessageKey, memoryview] = {}
        self.last_first_byte = self.started
        self._flows: list[tuple[float, float]] = []  # of each round: from the first byte of its last peer to its end
        self._engine, self._key, self._sequence, self._phase = engine, key, sequence, 0
        self._unsent = 0
        self._algorithm: Algorithm | None = None
        self._ended = self.started
        self._done = threading.Event()
        self._result: np.ndarray | None = None
        self._error: CollectiveError | None = None
        self._waited = False

    def wait(self) -> np.ndarray:
        """Blocks until the result is there and this rank's data has left.

        Raises:
            CollectiveError: a peer was lost, stopped or missed the deadline.
        """
        begin = time.monotonic()
        if not self._done.wait(max(0.0, self.deadline - begin) + _OVERDUE_SECONDS):
            self._engine.abort(f"{self.title} is overdue and the progress thread does not answer")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        if not self._waited:
            self._waited = True
            end = time.monotonic()
            flows = [*self._flows, (self.last_first_byte, self._ended)]
            communication = sum(max(0.0, stop - start) for start, stop in flows)
            blocked = sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in flows)
            idle = max(0.0, min(end, self._ended) - begin - blocked)
            self._engine.add_times(self.cause, communication, idle, communication - blocked)
        return self._result

    def missing_ranks(self) -> list[int]:
        """Ranks whose data has not arrived whole, else those that do not take this rank's data."""
        missing = {key.peer for key in self.pending_receives} or self._engine.clogged_peers(self)
        return sorted(missing)

    # What follows is called under the mesh's lock. First the side of the algorithm (see `algorithms.MessageExchange`).

    def others(self) -> list[int]:
        """All indices but this rank's, starting behind it."""
        return [(self.index + step) % self.size for step in range(1, self.size)]

    def send(self, peer: int, array: np.ndarray) -> None:
        """Sends `array` to the `peer`-th rank of the group."""
        self._unsent += 1
        self._engine.post_send(self, self._message_key(peer), array)

    def receive(self, peer: int, array: np.ndarray) -> None:
        """Fills `array` with what the `peer`-th rank of the group sends in this round."""
        self._engine.post_receive(self, self._message_key(peer), array)

    def _message_key(self, peer: int) -> MessageKey:
        return MessageKey(self.ranks[peer], self._key, self._sequence, self._phase)

    # Then the side of the engine and of the links.

    def sent(self, link: PeerLink, payload_bytes: int) -> None:
        """The kernel has taken a message of `payload_bytes` to the peer of `link`."""
        self._unsent -= 1
        self._engine.count_sent(self.cause, link.peer, payload_bytes)
        self.advance()

    def unsendable(self) -> None:
        """A message that was counted cannot leave; the reading side will tell why."""
        self._unsent -= 1

    def run(self, algorithm: Algorithm) -> None:
        """Begins: posts the first round's messages."""
        self._algorithm = algorithm
        self._next_round()
        self.advance()

    def advance(self) -> None:
        """Does every round whose messages are there, and ends the operation once all its messages have left."""
        while not self.pending_receives and self._algorithm is not None and self._result is None:
            now = time.monotonic()
            self._flows.append((self.last_first_byte, now))
            self.last_first_byte = now
            self._next_round()
        if self._result is not None and not self._unsent and not self._done.is_set():
            self._finish()

    def fail(self, error: CollectiveError) -> None:
        """Ends the operation with `error`, unless it has ended already."""
        if not self._done.is_set():
            self._error = error
            self._finish()

    def _next_round(self) -> None:
        assert self._algorithm is not None
        algorithm, self._algorithm = self._algorithm, None  # posting may call `advance`, which must not re-enter
        try:
            next(algorithm)
        except StopIteration as end:
            self._result = end.value
            return
        self._phase += 1
        self._algorithm = algorithm

    def _finish(self) -> None:
        self._ended = time.monotonic()
        self._algorithm = None
        self._engine.forget(self)
        self._done.set()
