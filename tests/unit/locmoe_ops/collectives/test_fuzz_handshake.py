"""Whatever comes in at a port of the mesh: the errors that joining knows, and nobody admitted who has not proved the
secret.
"""

import json
import socket
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locmoe_ops.collectives.tcp import wire
from locmoe_ops.collectives.tcp.acceptor import Acceptor, listening_address
from locmoe_ops.collectives.tcp.mesh import Mesh
from locmoe_ops.collectives.tcp.rendezvous import JoinFailed, _address_table
from locmoe_ops.errors import CollectiveError

SECRET = b"right"
OPENING = struct.Struct("<8s4sII16s").pack(b"locmesh1", b"join", 1, 2, bytes(16))
WORDS = [
    OPENING,
    OPENING[:20],
    b"locmesh1",
    b"join",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    bytes(32),
    b"\xff" * 64,
    bytes(4096),
]
NOISE = st.lists(st.binary(max_size=80) | st.sampled_from(WORDS), max_size=4).map(b"".join)
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["127.0.0.1", "::1", 5000])
)
NAME = st.sampled_from(["1", "2", "host", "port"])
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3), max_leaves=8
)
MESSAGE = st.dictionaries(
    st.sampled_from(["host", "port", "addresses", "seconds", "error", "1", "go"]), JSON, max_size=4
)


def deadline():
    return time.monotonic() + 10


def said(noise, listen):
    """What `listen` makes of a connection on which the other end says `noise` and closes."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(noise)
            theirs.shutdown(socket.SHUT_WR)
            return listen(ours)


@settings(deadline=None)
@given(noise=NOISE)
def test_neither_end_of_a_handshake_believes_noise(noise):
    with pytest.raises((wire.HandshakeError, OSError)):
        said(noise, lambda sock: wire.prove_as_acceptor(sock, b"join", SECRET, deadline()))
    with pytest.raises((wire.HandshakeError, OSError)):
        said(noise, lambda sock: wire.prove_as_connector(sock, b"join", wire.Hello(1, 2), SECRET, deadline()))


@settings(deadline=None)
@given(
    text=st.binary(max_size=60) | MESSAGE.map(json.dumps).map(str.encode) | st.sampled_from([b"[" * 9000, b"9" * 9000]),
    length=st.none() | st.integers(0, 2**32 - 1),
)
def test_a_message_is_an_object_or_an_error(text, length):
    noise = struct.pack("<I", len(text) if length is None else length) + text
    try:
        message = said(noise, lambda sock: wire.receive_json(sock, deadline()))
    except OSError:
        return
    assert message == json.loads(text[:length], parse_constant=float) or "nan" in str(message).lower()


@settings(deadline=None)
@given(message=MESSAGE)
def test_addresses_are_addresses_or_an_error(message):
    try:
        host, port = listening_address(message)
        assert (host, port) == (message["host"], message["port"]) and 0 < port < 65536
    except OSError:
        pass
    try:
        table, seconds = _address_table(message, range(1, 3))
        assert sorted(table) == [1, 2] and 0 <= seconds < 1e7
    except JoinFailed:
        pass


@pytest.fixture(scope="module")
def acceptor():
    """At work for all noise; afterwards a rank is admitted as ever."""
    acceptor = Acceptor(("127.0.0.1", 0), b"join", SECRET)
    yield acceptor
    with socket.create_connection(acceptor.address) as sock:
        wire.prove_as_connector(sock, b"join", wire.Hello(1, 2), SECRET, deadline())
        wire.send_json(sock, {"host": "127.0.0.1", "port": 1}, deadline())
        peer = acceptor.peers.get(timeout=10)
        peer.sock.close()
    acceptor.close()
    assert peer.hello == wire.Hello(1, 2) and acceptor.peers.empty() and acceptor.rejected


@settings(deadline=None)
@given(noise=NOISE)
def test_strangers_at_a_port(acceptor, noise):
    with socket.create_connection(acceptor.address, timeout=10) as sock:
        try:
            sock.sendall(noise)
        except OSError:  # refused before all of it was said
            pass
    assert acceptor.peers.empty()


KEY = wire.collective_key("all_reduce", "x", (0, 1))
FRAME = st.builds(
    lambda kind, phase, sequence, length, key, body: wire.FrameHeader(kind, phase, sequence, length, key).pack() + body,
    st.integers(0, 5),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([0, 4, 16, 2**20, 2**40, 2**63, 2**64 - 1]),
    st.sampled_from([KEY, bytes(16)]),
    st.binary(max_size=20),
)


@settings(
    deadline=None, max_examples=max(settings.default.max_examples // 10, 1)
)  # each makes a mesh with a thread of its own
@given(frames=st.lists(FRAME | st.binary(max_size=40), max_size=3).map(b"".join))
def test_a_peer_that_sends_nonsense_ends_the_job_with_an_error_that_names_it(frames):
    ours, theirs = _connected()
    mesh = Mesh(0, 2, {1: ours}, 10.0, None)
    try:
        theirs.sendall(frames)
        theirs.close()
        result = mesh.all_reduce((0, 1), "x", np.zeros(4, np.float32))
        assert result.shape == (4,)
    except CollectiveError as error:
        assert str(error).startswith("rank 0: ")
    finally:
        mesh.close()


def _connected():
    """Both ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        return listener.accept()[0], theirs
