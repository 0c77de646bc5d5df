"""One run of a collective on one rank: what it still waits for, when it began and ended, and its result."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from locmoe_ops.collectives.tcp.algorithms import Algorithm
from locmoe_ops.collectives.tcp.link import PeerLink
from locmoe_ops.errors import CollectiveError

if TYPE_CHECKING:
    from locmoe_ops.collectives.tcp.engine import Engine

_OVERDUE_SECONDS = 10.0  # beyond the deadline, which the progress thread enforces as long as it lives


class MessageKey(NamedTuple):
    """What a message must match to fill a posted buffer."""

    peer: int
    key: bytes
    sequence: int
    phase: int


class Operation:
    """A started collective; `wait` returns its result. Made by `Mesh.start_*` only.

    The array given to `start_*` must not change before `wait` returns.
    """

    def __init__(
        self, engine: Engine, title: str, cause: str, ranks: tuple[int, ...], key: bytes, sequence: int
    ) -> None:
        self.title = title
        self.cause = cause
        self.ranks = ranks
        self.index = ranks.index(engine.rank)
        self.size = len(ranks)
        self.started = time.monotonic()
        self.deadline = self.started + engine.collective_timeout
        self.awaited: dict[MessageKey, memoryview] = {}
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
            self._engine.add_times(self.cause, *self._times(begin, time.monotonic()))
        return self._result

    def missing_ranks(self) -> list[int]:
        """Ranks whose data has not arrived whole, else those that do not take this rank's data."""
        missing = {key.peer for key in self.awaited} or self._engine.clogged_peers(self)
        return sorted(missing)

    # What follows is called under the mesh's lock.

    def others(self) -> list[int]:
        return [(self.index + step) % self.size for step in range(1, self.size)]

    def send(self, peer: int, array: np.ndarray) -> None:
        self._unsent += 1
        self._engine.post_send(self, self._message_key(peer), array)

    def receive(self, peer: int, array: np.ndarray) -> None:
        self._engine.post_receive(self, self._message_key(peer), array)

    def sent(self, link: PeerLink, payload_bytes: int) -> None:
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
        """Goes as far as the messages at hand allow."""
        while not self.awaited and self._algorithm is not None and self._result is None:
            self._end_round()
            self._next_round()
        if self._result is not None and not self._unsent and not self._done.is_set():
            self._finish()

    def fail(self, error: CollectiveError) -> None:
        if not self._done.is_set():
            self._error = error
            self._finish()

    def _end_round(self) -> None:
        now = time.monotonic()
        self._flows.append((self.last_first_byte, now))
        self.last_first_byte = now

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

    def _message_key(self, peer: int) -> MessageKey:
        return MessageKey(self.ranks[peer], self._key, self._sequence, self._phase)

    def _times(self, begin: float, end: float) -> tuple[float, float, float]:
        """Seconds of communication, idle and overlapped, for a caller that was blocked from `begin` to `end`."""
        flows = [*self._flows, (self.last_first_byte, self._ended)]
        communication = sum(max(0.0, stop - start) for start, stop in flows)
        blocked = sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in flows)
        idle = max(0.0, min(end, self._ended) - begin - blocked)
        return communication, idle, communication - blocked
