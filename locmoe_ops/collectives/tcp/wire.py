"""What two ranks send each other: message headers, the mutual proof of the shared secret, and JSON while joining."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import struct
import time
from typing import Any, NamedTuple

DATA, FAIL, BYE = 1, 2, 3

_HEADER = struct.Struct("<BBHIQ16s")
HEADER_BYTES = _HEADER.size

_HELLO = struct.Struct("<8s4sII16s")  # magic, purpose, rank, world size, nonce
_MAGIC = b"locmesh1"
_NONCE_BYTES = 16
_PROOF_BYTES = hashlib.sha256().digest_size
_LENGTH = struct.Struct("<I")
_MAX_JSON_BYTES = 1 << 24


class HandshakeError(RuntimeError):
    """The other end is a stranger: it speaks something else, or does not know this job's secret."""


class FrameHeader(NamedTuple):
    """One message: `length` payload bytes of phase `phase` of the `sequence`-th run of the collective `key`."""

    kind: int  # DATA, FAIL or BYE
    phase: int
    sequence: int
    length: int
    key: bytes

    def pack(self) -> bytes:
        """Its `HEADER_BYTES` bytes; `unpack` is the inverse."""
        return _HEADER.pack(self.kind, self.phase, 0, self.sequence, self.length, self.key)

    @classmethod
    def unpack(cls, data: bytes) -> FrameHeader:
        kind, phase, _, sequence, length, key = _HEADER.unpack(data)
        return cls(kind, phase, sequence, length, key)


def collective_key(operation: str, tag: str, ranks: tuple[int, ...]) -> bytes:
    """16 bytes that stand for one call site, of `operation`, `tag` and `ranks`, in message headers."""
    text = "\0".join([operation, tag, ",".join(map(str, ranks))])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Hello(NamedTuple):
    """Who connects, as authenticated by the secret."""

    rank: int
    world_size: int


def prove_as_connector(sock: socket.socket, purpose: bytes, hello: Hello, secret: bytes, deadline: float) -> None:
    """Proves the secret to the accepting end, after checking that end's own proof.

    Both nonces and the role go into each proof, so that no message can be replayed or sent back to its author.

    Args:
        sock: connected to the accepting end.
        purpose: 4 bytes at most that say what the connection is for.
        hello: who this end is.
        secret: known to the ranks of this job only.
        deadline: of `time.monotonic`.

    Raises:
        HandshakeError: the other end does not know the secret.
        OSError: the connection broke or `deadline` passed.
    """
    opening = _HELLO.pack(_MAGIC, purpose, hello.rank, hello.world_size, os.urandom(_NONCE_BYTES))
    sock.settimeout(_remaining(deadline))
    sock.sendall(opening)
    reply = receive_exactly(sock, _NONCE_BYTES + _PROOF_BYTES, deadline)
    transcript = opening + reply[:_NONCE_BYTES]
    if not hmac.compare_digest(reply[_NONCE_BYTES:], _proof(secret, b"acceptor", transcript)):
        raise HandshakeError("does not know this job's secret")
    sock.sendall(_proof(secret, b"connector", transcript))


def prove_as_acceptor(sock: socket.socket, purpose: bytes, secret: bytes, deadline: float) -> Hello:
    """The accepting half of `prove_as_connector`, with the same `sock`, `purpose`, `secret` and `deadline`; returns
    who connected.
    """
    opening = receive_exactly(sock, _HELLO.size, deadline)
    magic, stated_purpose, rank, world_size, _ = _HELLO.unpack(opening)
    if magic != _MAGIC or stated_purpose != purpose:
        raise HandshakeError("does not speak this protocol")
    nonce = os.urandom(_NONCE_BYTES)
    transcript = opening + nonce
    sock.sendall(nonce + _proof(secret, b"acceptor", transcript))
    answer = receive_exactly(sock, _PROOF_BYTES, deadline)
    if not hmac.compare_digest(answer, _proof(secret, b"connector", transcript)):
        raise HandshakeError("does not know this job's secret")
    return Hello(rank, world_size)


def send_json(sock: socket.socket, message: dict[str, Any], deadline: float) -> None:
    """Sends `message` over `sock`; OSError when the connection breaks or `deadline` (of `time.monotonic`) passes."""
    data = json.dumps(message).encode()
    sock.settimeout(_remaining(deadline))
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive_json(sock: socket.socket, deadline: float) -> dict[str, Any]:
    """The next message; OSError when the connection breaks, `deadline` passes or the message is not one."""
    (length,) = _LENGTH.unpack(receive_exactly(sock, _LENGTH.size, deadline))
    if length > _MAX_JSON_BYTES:
        raise ConnectionError(f"message of {length} bytes while joining")
    try:
        message = json.loads(receive_exactly(sock, length, deadline))
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ConnectionError("malformed message while joining")
    return message


def receive_exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    """The next `count` bytes of `sock`; ConnectionError when the connection ends first, TimeoutError at `deadline`."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        sock.settimeout(_remaining(deadline))
        received = sock.recv_into(view)
        if not received:
            raise ConnectionError("connection closed")
        view = view[received:]
    return bytes(data)


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise socket.timeout("deadline passed")
    return seconds


def _proof(secret: bytes, role: bytes, transcript: bytes) -> bytes:
    return hmac.new(secret, role + b"\0" + transcript, hashlib.sha256).digest()
