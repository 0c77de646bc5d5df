"""How the ranks of a job find each other and connect pairwise.

1. Rank 0 listens at the root address; every other rank connects to it, both ends prove the secret, and the rank says
   where it listens itself. 2. Rank 0 sends everybody the table of addresses. 3. Rank i connects to every rank below it
   (its connection to rank 0 is there already). 4. Everybody reports to rank 0, which lets all go, or tells all why not.
Rank 0 is the authority on deadlines, so that a rank that stays away is named alike on all the others.
"""

from __future__ import annotations

import queue
import select
import socket
import time
from typing import Any

from locmoe_ops.collectives.tcp import wire
from locmoe_ops.collectives.tcp.acceptor import (
    HANDSHAKE_SECONDS,
    POLL_SECONDS,
    Acceptor,
    Address,
    Peer,
    listening_address,
)
from locmoe_ops.errors import CollectiveError, rank_names

_GRACE_SECONDS = 5.0  # a member waits this much longer than rank 0, so that rank 0's reason arrives
_LONGEST_WAIT = 1e6  # seconds that rank 0 may ask a member to wait


class JoinFailed(Exception):
    """Why the mesh did not come about; `connect_ranks` puts rank and operation in front."""


def connect_ranks(
    rank: int, world_size: int, root: Address, secret: bytes, bind: str, timeout: float
) -> dict[int, socket.socket]:
    """One connected socket to every other rank.

    Args:
        rank, world_size: this rank, and the ranks of the job.
        root: host and port where rank 0 listens.
        secret: known to the ranks of this job only.
        bind: the local address to listen on and connect from.
        timeout: seconds in which all ranks must have joined.

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


class _RootJoin:
    """Rank 0's side: gathers members, hands out the table, waits for everybody's report."""

    def __init__(self, world_size: int, root: Address, secret: bytes, bind: str, timeout: float) -> None:
        self.world_size, self.timeout = world_size, timeout
        self.deadline = time.monotonic() + timeout
        self.members: dict[int, socket.socket] = {}
        self.addresses: dict[int, Address] = {}
        self.acceptor = Acceptor((bind, root[1]), b"join", secret)

    def run(self) -> dict[int, socket.socket]:
        try:
            self._gather()
            stage = max(self.deadline - time.monotonic(), _GRACE_SECONDS)
            self._send_all({"addresses": self.addresses, "seconds": stage})
            self._collect_reports(time.monotonic() + stage)
            self._send_all({"go": True})
            self.acceptor.log_rejected()
        except JoinFailed as failure:
            self._send_all({"error": str(failure)})
            for sock in self.members.values():
                sock.close()
            raise
        finally:
            self.acceptor.close()
        return self.members

    def _gather(self) -> None:
        while len(self.members) < self.world_size - 1:
            try:
                self._admit(self.acceptor.peers.get(timeout=POLL_SECONDS))
            except queue.Empty:
                pass
            for rank, sock in self.members.items():
                if _readable(sock):  # a member has nothing to say yet: this is its end
                    raise JoinFailed(f"lost rank {rank} (connection closed)")
            if time.monotonic() > self.deadline:
                missing = [rank for rank in range(1, self.world_size) if rank not in self.members]
                text = f"{rank_names(missing)} did not join within {self.timeout:g} s"
                rejected = self.acceptor.describe_rejected()
                raise JoinFailed(text + (f" ({rejected})" if rejected else ""))

    def _admit(self, peer: Peer) -> None:
        rank, world_size = peer.hello
        problem = None
        if world_size != self.world_size:
            problem = f"rank {rank} expects {world_size} ranks, rank 0 expects {self.world_size}"
        elif not 0 < rank < world_size:
            problem = f"rank {rank} is outside 1..{world_size - 1}"
        elif rank in self.members:
            problem = f"two processes say they are rank {rank}"
        if problem:
            _send_message(peer.sock, {"error": problem})
            peer.sock.close()
            raise JoinFailed(problem)
        self.members[rank] = peer.sock
        self.addresses[rank] = peer.address

    def _collect_reports(self, deadline: float) -> None:
        waiting = dict(self.members)
        while waiting:
            for rank, sock in list(waiting.items()):
                if _readable(sock):
                    _receive(rank, sock, deadline)
                    del waiting[rank]
            if waiting and time.monotonic() > deadline:
                raise JoinFailed(f"{rank_names(sorted(waiting))} did not connect to the other ranks in time")
            time.sleep(POLL_SECONDS if waiting else 0)

    def _send_all(self, message: dict[str, Any]) -> None:
        for sock in self.members.values():
            _send_message(sock, message)


class _MemberJoin:
    """The side of every other rank."""

    def __init__(self, rank: int, world_size: int, root: Address, secret: bytes, bind: str, timeout: float) -> None:
        self.hello = wire.Hello(rank, world_size)
        self.root, self.secret, self.bind, self.timeout = root, secret, bind, timeout
        self.deadline = time.monotonic() + timeout
        self.acceptor = Acceptor((bind, 0), b"pair", secret)
        self.sockets: dict[int, socket.socket] = {}

    def run(self) -> dict[int, socket.socket]:
        try:
            root = self.sockets[0] = self._reach_root()
            message = _receive(0, root, time.monotonic() + self.timeout + _GRACE_SECONDS)
            addresses, seconds = _address_table(message, range(1, self.hello.rank))
            deadline = time.monotonic() + seconds + _GRACE_SECONDS
            try:
                self._connect(addresses, deadline)
            except OSError as error:
                _send_message(root, {"error": str(error)})
            else:
                _send_message(root, {"ready": True})
            _receive(0, root, deadline)
            self.acceptor.log_rejected()
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
            time.sleep(POLL_SECONDS)
        raise JoinFailed(f"cannot reach rank 0 within {self.timeout:g} s ({reason})")

    def _call(self, address: Address, purpose: bytes) -> socket.socket:
        """A connection to `address` on which both ends have proved the secret."""
        seconds = min(HANDSHAKE_SECONDS, max(self.deadline - time.monotonic(), 0.1))
        sock = socket.create_connection(address, timeout=seconds, source_address=(self.bind, 0))
        try:
            wire.prove_as_connector(sock, purpose, self.hello, self.secret, time.monotonic() + seconds)
            mine = {"host": sock.getsockname()[0], "port": self.acceptor.address[1]}
            wire.send_json(sock, mine, time.monotonic() + seconds)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connect(self, addresses: dict[int, Address], deadline: float) -> None:
        """To every lower rank by a call, to every higher one by its call."""
        self.deadline = deadline
        for peer, (host, port) in addresses.items():
            try:
                self.sockets[peer] = self._call((host, port), b"pair")
            except (OSError, wire.HandshakeError) as error:
                raise ConnectionError(
                    f"rank {self.hello.rank} cannot reach rank {peer} at {host}:{port} ({error})"
                ) from None
        while len(self.sockets) < self.hello.world_size - 1:
            try:
                self._admit(self.acceptor.peers.get(timeout=POLL_SECONDS))
            except queue.Empty:
                pass
            if _readable(self.sockets[0]):  # rank 0 speaks first only when the join has failed
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {self.hello.rank} was not reached by all higher ranks")

    def _admit(self, peer: Peer) -> None:
        rank, world_size = peer.hello
        if world_size != self.hello.world_size or not self.hello.rank < rank < world_size or rank in self.sockets:
            peer.sock.close()
            raise ConnectionError(
                f"rank {self.hello.rank} was reached by rank {rank} of {world_size}, which it does not expect"
            )
        self.sockets[rank] = peer.sock


def _send_message(sock: socket.socket, message: dict[str, Any]) -> None:
    """Sends `message` unless the peer is gone, which the next read from it will show."""
    try:
        wire.send_json(sock, message, time.monotonic() + HANDSHAKE_SECONDS)
    except OSError:
        pass


def _receive(rank: int, sock: socket.socket, deadline: float) -> dict[str, Any]:
    """What a rank says next. Raises JoinFailed where it is lost, or says why the join has failed."""
    try:
        message = wire.receive_json(sock, deadline)
    except OSError as error:
        raise JoinFailed(f"lost rank {rank} ({error})") from None
    if "error" in message:
        raise JoinFailed(" ".join(str(message["error"])[:1000].split()))
    return message


def _address_table(message: dict[str, Any], ranks: range) -> tuple[dict[int, Address], float]:
    """Addresses of `ranks`, and seconds to reach them in, as rank 0 says. Raises JoinFailed where it says something
    else.
    """
    table, seconds = message.get("addresses"), message.get("seconds")
    try:
        if not isinstance(table, dict) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST_WAIT:
            raise ValueError
        pairs = {rank: table[str(rank)] for rank in ranks}
        return {rank: listening_address({"host": host, "port": port}) for rank, (host, port) in pairs.items()}, float(
            seconds
        )
    except (ValueError, TypeError, KeyError, OSError):
        raise JoinFailed("lost rank 0 (malformed message while joining)") from None


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()  # not select(): file descriptors may exceed its 1024
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
