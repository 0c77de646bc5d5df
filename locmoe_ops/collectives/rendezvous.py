"""How the ranks of a job find each other and connect pairwise.

1. Rank 0 listens at the root address; every other rank connects to it, both ends prove the secret, and the rank says
   where it listens itself. 2. Rank 0 sends everybody the table of addresses. 3. Rank i connects to every rank below it
   (its connection to rank 0 is there already). 4. Everybody reports to rank 0, which lets all go, or tells all why not.
Rank 0 is the authority on deadlines, so that a rank that stays away is named alike on all the others.
"""

from __future__ import annotations

import errno
import queue
import select
import socket
import threading
import time
from typing import Any, NamedTuple

from locmoe_ops.collectives import wire
from locmoe_ops.errors import CollectiveError, InputError

Address = tuple[str, int]

_HANDSHAKE_SECONDS = 5.0
_GRACE_SECONDS = 5.0  # a member waits this much longer than rank 0, so that rank 0's reason arrives
_POLL_SECONDS = 0.05
_STRANGERS_AT_ONCE = 64


class JoinFailed(Exception):
    """Why the mesh did not come about; `connect_ranks` puts rank and operation in front."""


class _Peer(NamedTuple):
    """One authenticated incoming connection and what it said first."""

    hello: wire.Hello
    sock: socket.socket
    info: dict[str, Any]


def connect_ranks(rank: int, world_size: int, root: Address, secret: bytes, bind: str,
                  timeout: float) -> dict[int, socket.socket]:
    """One connected socket to every other rank.

    Raises:
        InputError: the root address cannot be listened on (rank 0), or `bind` is not an address of this machine.
        CollectiveError: some rank did not join within `timeout` seconds, or was lost while joining.
    """
    try:
        if rank == 0:
            return _RootJoin(world_size, root, secret, bind, timeout).run()
        return _MemberJoin(rank, world_size, root, secret, bind, timeout).run()
    except JoinFailed as failure:
        raise CollectiveError(f"rank {rank}: join of the mesh at {root[0]}:{root[1]}: {failure}") from None


class _Acceptor:
    """Listens and shakes hands in the background; strangers are dropped and never seen by the caller."""

    def __init__(self, address: Address, purpose: bytes, secret: bytes) -> None:
        self.peers: queue.Queue[_Peer] = queue.Queue()
        self.rejected: list[str] = []
        self._purpose, self._secret = purpose, secret
        self._slots = threading.BoundedSemaphore(_STRANGERS_AT_ONCE)
        self._listener = _listen(address)
        self._listener.settimeout(_POLL_SECONDS)
        self._stopped = False
        self.address: Address = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, name="mesh-accept", daemon=True).start()

    def close(self) -> None:
        self._stopped = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped:
            if not self._slots.acquire(timeout=_POLL_SECONDS):
                continue
            try:
                sock, _ = self._listener.accept()
            except OSError:  # timeout, closed, or a connection that was gone already
                self._slots.release()
                continue
            threading.Thread(target=self._greet, args=(sock,), name="mesh-greet", daemon=True).start()

    def _greet(self, sock: socket.socket) -> None:
        deadline = time.monotonic() + _HANDSHAKE_SECONDS
        try:
            hello = wire.prove_as_acceptor(sock, self._purpose, self._secret, deadline)
            self.peers.put(_Peer(hello, sock, wire.receive_json(sock, deadline)))
        except Exception as error:  # whatever a stranger sends must not end the job
            self.rejected.append(str(error))
            sock.close()
        finally:
            self._slots.release()


class _RootJoin:
    """Rank 0's side: gathers members, hands out the table, waits for everybody's report."""

    def __init__(self, world_size: int, root: Address, secret: bytes, bind: str, timeout: float) -> None:
        self.world_size, self.timeout = world_size, timeout
        self.deadline = time.monotonic() + timeout
        self.members: dict[int, socket.socket] = {}
        self.addresses: dict[int, Address] = {}
        self.acceptor = _Acceptor((bind, root[1]), b"join", secret)

    def run(self) -> dict[int, socket.socket]:
        try:
            self._gather()
            stage = max(self.deadline - time.monotonic(), _GRACE_SECONDS)
            self._tell_all({"addresses": self.addresses, "seconds": stage})
            self._collect_reports(time.monotonic() + stage)
            self._tell_all({"go": True})
        except JoinFailed as failure:
            self._tell_all({"error": str(failure)})
            for sock in self.members.values():
                sock.close()
            raise
        finally:
            self.acceptor.close()
        return self.members

    def _gather(self) -> None:
        while len(self.members) < self.world_size - 1:
            try:
                self._admit(self.acceptor.peers.get(timeout=_POLL_SECONDS))
            except queue.Empty:
                pass
            for rank, sock in self.members.items():
                if _readable(sock):  # a member has nothing to say yet: this is its end
                    raise JoinFailed(f"lost {_names([rank])} (connection closed)")
            if time.monotonic() > self.deadline:
                raise JoinFailed(self._missing())

    def _admit(self, peer: _Peer) -> None:
        rank, world_size = peer.hello
        problem = None
        if world_size != self.world_size:
            problem = f"rank {rank} expects {world_size} ranks, rank 0 expects {self.world_size}"
        elif not 0 < rank < world_size:
            problem = f"rank {rank} is outside 1..{world_size - 1}"
        elif rank in self.members:
            problem = f"two processes say they are rank {rank}"
        if problem:
            _tell(peer.sock, {"error": problem})
            peer.sock.close()
            raise JoinFailed(problem)
        self.members[rank] = peer.sock
        self.addresses[rank] = (peer.info["host"], peer.info["port"])

    def _missing(self) -> str:
        missing = [rank for rank in range(1, self.world_size) if rank not in self.members]
        text = f"{_names(missing)} did not join within {self.timeout:g} s"
        rejected = self.acceptor.rejected
        return text + (f" ({len(rejected)} other connections refused, the last: {rejected[-1]})" if rejected else "")

    def _collect_reports(self, deadline: float) -> None:
        waiting = dict(self.members)
        while waiting:
            for rank, sock in list(waiting.items()):
                if _readable(sock):
                    _check_report(rank, sock, deadline)
                    del waiting[rank]
            if waiting and time.monotonic() > deadline:
                raise JoinFailed(f"{_names(sorted(waiting))} did not connect to the other ranks in time")
            time.sleep(_POLL_SECONDS if waiting else 0)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for sock in self.members.values():
            _tell(sock, message)


class _MemberJoin:
    """The side of every other rank."""

    def __init__(self, rank: int, world_size: int, root: Address, secret: bytes, bind: str, timeout: float) -> None:
        self.hello = wire.Hello(rank, world_size)
        self.root, self.secret, self.bind, self.timeout = root, secret, bind, timeout
        self.deadline = time.monotonic() + timeout
        self.acceptor = _Acceptor((bind, 0), b"pair", secret)
        self.sockets: dict[int, socket.socket] = {}

    def run(self) -> dict[int, socket.socket]:
        try:
            root = self.sockets[0] = self._reach_root()
            table = self._from_root(time.monotonic() + self.timeout + _GRACE_SECONDS)
            deadline = time.monotonic() + table["seconds"] + _GRACE_SECONDS
            try:
                self._connect_lower(table["addresses"], deadline)
                self._accept_higher(deadline)
            except OSError as error:
                _tell(root, {"error": str(error)})
            else:
                _tell(root, {"ready": True})
            self._from_root(deadline)
        except JoinFailed:
            for sock in self.sockets.values():
                sock.close()
            raise
        finally:
            self.acceptor.close()
        return self.sockets

    def _reach_root(self) -> socket.socket:
        reason = "no answer"
        while time.monotonic() < self.deadline:
            try:
                return self._call(self.root, b"join")
            except wire.HandshakeError as error:
                raise JoinFailed(f"what listens there {error}") from None
            except OSError as error:
                reason = error.strerror or str(error) or "no answer"
            time.sleep(_POLL_SECONDS)
        raise JoinFailed(f"cannot reach rank 0 within {self.timeout:g} s ({reason})")

    def _call(self, address: Address, purpose: bytes) -> socket.socket:
        """A connection to `address` on which both ends have proved the secret."""
        seconds = min(_HANDSHAKE_SECONDS, max(self.deadline - time.monotonic(), 0.1))
        sock = socket.create_connection(address, timeout=seconds, source_address=(self.bind, 0))
        try:
            wire.prove_as_connector(sock, purpose, self.hello, self.secret, time.monotonic() + seconds)
            mine = {"host": sock.getsockname()[0], "port": self.acceptor.address[1]}
            wire.send_json(sock, mine, time.monotonic() + seconds)
        except BaseException:
            sock.close()
            raise
        return sock

    def _from_root(self, deadline: float) -> dict[str, Any]:
        try:
            message = wire.receive_json(self.sockets[0], deadline)
        except OSError as error:
            raise JoinFailed(f"lost rank 0 ({error})") from None
        if "error" in message:
            raise JoinFailed(message["error"])
        return message

    def _connect_lower(self, addresses: dict[str, list[Any]], deadline: float) -> None:
        self.deadline = deadline
        for peer in range(1, self.hello.rank):
            host, port = addresses[str(peer)]
            try:
                self.sockets[peer] = self._call((host, port), b"pair")
            except (OSError, wire.HandshakeError) as error:
                raise ConnectionError(f"rank {self.hello.rank} cannot reach rank {peer} at {host}:{port} "
                                      f"({error})") from None

    def _accept_higher(self, deadline: float) -> None:
        while len(self.sockets) < self.hello.world_size - 1:
            try:
                peer = self.acceptor.peers.get(timeout=_POLL_SECONDS)
                self.sockets[peer.hello.rank] = peer.sock
            except queue.Empty:
                pass
            if _readable(self.sockets[0]):  # rank 0 speaks first only when the join has failed
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {self.hello.rank} was not reached by all higher ranks")


def _tell(sock: socket.socket, message: dict[str, Any]) -> None:
    """Sends `message` unless the peer is gone, which the next read from it will show."""
    try:
        wire.send_json(sock, message, time.monotonic() + _HANDSHAKE_SECONDS)
    except OSError:
        pass


def _check_report(rank: int, sock: socket.socket, deadline: float) -> None:
    try:
        report = wire.receive_json(sock, deadline)
    except OSError as error:
        raise JoinFailed(f"lost {_names([rank])} ({error})") from None
    if "error" in report:
        raise JoinFailed(report["error"])


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(address, family=family, backlog=512)
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"mesh: port in use: {where}; expected a free port for rank 0") from None
        raise InputError(f"mesh: cannot listen on {where} ({error.strerror or error}); "
                         "expected an address of this machine") from None


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()  # not select(): file descriptors may exceed its 1024
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _names(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
