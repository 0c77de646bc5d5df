"""The listening end of a join: shakes hands in the background, so that strangers are dropped and never seen by the
caller.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import queue
import socket
import threading
import time
from typing import Any, NamedTuple

from locmoe_ops.collectives.tcp import wire
from locmoe_ops.errors import InputError

Address = tuple[str, int]

HANDSHAKE_SECONDS = 5.0
POLL_SECONDS = 0.05
_HANDSHAKES_AT_ONCE = 64
_log = logging.getLogger(__name__)


class Peer(NamedTuple):
    """One authenticated incoming connection and what it said first."""

    hello: wire.Hello
    sock: socket.socket
    address: Address  # where it listens itself


class Acceptor:
    """Listens at `address` until it is closed.

    Args:
        address: host and port; port 0: any free one.
        purpose: 4 bytes at most that say what connections are for; both ends must name the same.
        secret: known to the ranks of this job only.

    Attributes:
        peers: queue of those that have proved the secret.
        address: where it really listens.
        rejected, last_rejected: how many others came, and what was wrong with the last.

    Raises:
        InputError: the address cannot be listened on.
    """

    def __init__(self, address: Address, purpose: bytes, secret: bytes) -> None:
        self.peers: queue.Queue[Peer] = queue.Queue()
        self.rejected = 0
        self.last_rejected = ""
        self._purpose, self._secret = purpose, secret
        self._lock = threading.Lock()
        self._under_way: dict[socket.socket, None] = {}  # handshakes, oldest first
        self._listener = _listen(address)
        self._listener.settimeout(POLL_SECONDS)
        self._stopped = False
        self.address: Address = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, name="mesh-accept", daemon=True).start()

    def close(self) -> None:
        """Stops listening; peers that were accepted stay connected."""
        self._stopped = True
        self._listener.close()

    def describe_rejected(self) -> str:
        """How many strangers came, and what was wrong with the last; empty if none did."""
        return f"{self.rejected} other connections refused, the last: {self.last_rejected}" if self.rejected else ""

    def log_rejected(self) -> None:
        """One line for all strangers, however many: a log that they could fill would be an attack too."""
        if self.rejected:
            _log.warning("mesh at %s:%d: %s", *self.address, self.describe_rejected())

    def _accept(self) -> None:
        while not self._stopped:
            try:
                sock, address = self._listener.accept()
            except OSError:  # timeout, closed, or a connection that was gone already
                continue
            with self._lock:
                # Where many handshakes are under way the oldest is ended: a rank's takes milliseconds, a silent
                # stranger's as long as it may.
                if len(self._under_way) >= _HANDSHAKES_AT_ONCE:
                    oldest = next(iter(self._under_way))
                    del self._under_way[oldest]
                    try:
                        oldest.shutdown(socket.SHUT_RDWR)
                    except OSError:  # it has ended by itself
                        pass
                self._under_way[sock] = None
            threading.Thread(target=self._greet, args=(sock, address[0]), name="mesh-greet", daemon=True).start()

    def _greet(self, sock: socket.socket, host: str) -> None:
        """Shakes hands with `host`, in a thread of its own, and puts it among the peers or closes the connection."""
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        try:
            hello = wire.prove_as_acceptor(sock, self._purpose, self._secret, deadline)
            address = listening_address(wire.receive_json(sock, deadline))
            with self._lock:
                if sock not in self._under_way:
                    raise ConnectionError("connection closed")
                del self._under_way[sock]
            self.peers.put(Peer(hello, sock, address))
        except Exception as error:  # whatever a stranger sends must not end the job
            with self._lock:
                self.rejected += 1
                self.last_rejected = f"{host}: {error}"
                self._under_way.pop(sock, None)
            sock.close()


def listening_address(message: dict[str, Any]) -> Address:
    """Where a rank listens, as it says itself. Raises ConnectionError where that is no address."""
    host, port = message.get("host"), message.get("port")
    try:
        if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise ValueError
        ipaddress.ip_address(host)
    except ValueError:
        raise ConnectionError("malformed message while joining") from None
    return host, port


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(address, family=family, backlog=512)
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"mesh: port in use: {where}; expected a free port for rank 0") from None
        raise InputError(
            f"mesh: cannot listen on {where} ({error.strerror or error}); expected an address of this machine"
        ) from None
