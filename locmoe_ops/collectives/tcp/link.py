"""One connection of the mesh: a queue of outgoing messages and the message that is coming in.

Nothing here blocks or locks: `Engine` calls in under its lock, with sockets ready or not.
"""

from __future__ import annotations

import itertools
import selectors
import socket
from collections import deque
from typing import Any, Protocol

import numpy as np

from locmoe_ops.collectives.tcp.wire import FAIL, HEADER_BYTES, FrameHeader

_BUFFERS_A_CALL = 16
_READS_A_TURN = 32
_BUFFER_BYTES = 4 << 20  # large enough that a start usually hands its whole message to the kernel


class Receiver(Protocol):
    """What a link does with incoming messages."""

    def buffer_for(self, link: PeerLink, header: FrameHeader) -> memoryview:
        """Where the payload of a message from `link` goes: `header.length` writable bytes."""

    def received(self, link: PeerLink, header: FrameHeader, body: memoryview) -> None:
        """Acts on a whole message of the peer of `link`: `header`, and its payload `body`."""


class Outgoing:
    """A message on its way; `owner.sent(link, payload_bytes)` is called when the kernel has taken all of it.

    Args:
        header: packed `FrameHeader`.
        payload: bytes that follow it, which must stay as they are; None: none.
        owner: whom the message belongs to; None: nobody is told.
    """

    def __init__(self, header: bytes, payload: memoryview | None, owner: Any) -> None:
        self.views = [memoryview(header)]
        self.payload_bytes = 0
        if payload is not None and len(payload):
            self.views.append(payload)
            self.payload_bytes = len(payload)
        self.remaining = HEADER_BYTES + self.payload_bytes
        self.total = self.remaining
        self.owner = owner

    def advance(self, count: int) -> None:
        """Drops `count` bytes from the front."""
        self.remaining -= count
        while count:
            step = min(count, len(self.views[0]))
            self.views[0] = self.views[0][step:]
            count -= step
            if not self.views[0]:
                del self.views[0]

    def detach(self) -> None:
        """Copies what is left, so that the owner's memory may go away."""
        self.views = [memoryview(bytes(view)) for view in self.views]
        self.owner = None


class PeerLink:
    """The non-blocking connection `sock` to rank `peer`.

    Attributes:
        left: the peer has said goodbye.
        ended: nothing more will come in.
        armed_events: what the selector watches for.
    """

    def __init__(self, peer: int, sock: socket.socket) -> None:
        self.peer = peer
        self.sock = sock
        self.left = False
        self.ended = False
        self.armed_events = 0
        self._out_closed = False
        self._outgoing: deque[Outgoing] = deque()
        self._head = memoryview(bytearray(HEADER_BYTES))
        self._header: FrameHeader | None = None
        self._body = self._head
        self._filled = 0
        _tune(sock)

    @property
    def wants_to_write(self) -> bool:
        """Whether messages are queued."""
        return bool(self._outgoing)

    @property
    def wanted_events(self) -> int:
        """What the selector should watch for."""
        return (0 if self.ended else selectors.EVENT_READ) | (selectors.EVENT_WRITE if self._outgoing else 0)

    def holds_messages_of(self, owner: Any) -> bool:
        """Whether messages of `owner` are still queued."""
        return any(message.owner is owner for message in self._outgoing)

    def enqueue(self, header: FrameHeader, payload: memoryview | None, owner: Any) -> bool:
        """Queues `header` and `payload` as a message of `owner` (see `Outgoing`); False when this end is closed."""
        if not self._out_closed:
            self._outgoing.append(Outgoing(header.pack(), payload, owner))
        return not self._out_closed

    def flush(self) -> None:
        """Hands the kernel as much of the queue as it takes now."""
        try:
            while self._outgoing:
                messages = itertools.islice(self._outgoing, _BUFFERS_A_CALL // 2)
                views = [view for message in messages for view in message.views]
                sent = self.sock.sendmsg(views)
                while sent:
                    first = self._outgoing[0]
                    step = min(sent, first.remaining)
                    first.advance(step)
                    sent -= step
                    if not first.remaining:
                        self._outgoing.popleft()
                        if first.owner is not None:
                            first.owner.sent(self, first.payload_bytes)
        except BlockingIOError:
            pass
        except OSError:
            # The peer may have said why before it closed: leave the verdict to the reading side.
            self._outgoing.clear()
            self._out_closed = True

    def send_last(self, kind: int, text: str) -> None:
        """Queues a last message; a FAIL overtakes all but the one that has begun, a BYE waits its turn."""
        if kind == FAIL:
            first = itertools.islice(self._outgoing, 1)
            self._outgoing = deque(message for message in first if message.remaining < message.total)
        for message in self._outgoing:
            message.detach()
        body = text.encode()
        self.enqueue(FrameHeader(kind, 0, 0, len(body), bytes(16)), memoryview(body), None)

    def finish_sending(self) -> None:
        """Tells the peer that nothing follows, once the queue is empty."""
        if not self._outgoing and not self._out_closed:
            self._out_closed = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def read(self, receiver: Receiver) -> None:
        """Takes in what has arrived.

        Raises:
            OSError: the connection broke or the peer closed it.
        """
        try:
            for _ in range(_READS_A_TURN):
                count = self.sock.recv_into(self._body[self._filled :])
                if not count:
                    raise ConnectionError("connection closed")
                self._filled += count
                if self._filled == len(self._body):
                    self._filled = 0
                    self._part_complete(receiver)
        except BlockingIOError:
            pass

    def _part_complete(self, receiver: Receiver) -> None:
        """A header or a body has been filled; decides what the next bytes are."""
        if self._header is None:
            header = FrameHeader.unpack(bytes(self._head))
            self._body = receiver.buffer_for(self, header)
            if header.length:
                self._header = header
                return
            body = self._body
        else:
            header, body, self._header = self._header, self._body, None
        self._body = self._head
        receiver.received(self, header, body)


def byte_view(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array of any plain dtype, without a copy."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type] # NumPy's stubs lack the protocol


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    for option, limit in ((socket.SO_SNDBUF, "wmem_max"), (socket.SO_RCVBUF, "rmem_max")):
        try:
            with open(f"/proc/sys/net/core/{limit}") as file:
                allowed = int(file.read())
        except (OSError, ValueError):
            continue  # the system does not say
        # A fixed size switches the kernel's own tuning off, so it must be a large one.
        if allowed >= _BUFFER_BYTES // 4:
            sock.setsockopt(socket.SOL_SOCKET, option, min(allowed, _BUFFER_BYTES))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A host that vanishes without a word is noticed after about 30 s even between collectives.
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
