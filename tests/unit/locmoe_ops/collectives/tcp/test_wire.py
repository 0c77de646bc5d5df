"""Headers, call-site keys and the mutual proof of the secret over a socket pair."""

import socket
import threading
import time

import pytest

from locmoe_ops.collectives.tcp import wire


def shake_hands(connector_secret, acceptor_secret, purposes=(b"join", b"join")):
    """Both ends' outcomes: None or a Hello on success, else the exception."""
    ends = socket.socketpair()
    outcomes = {}

    def run(name, function):
        try:
            outcomes[name] = function()
        except Exception as error:
            outcomes[name] = error
            for end in ends:
                end.close()

    def connect():
        wire.prove_as_connector(ends[0], purposes[0], wire.Hello(3, 8), connector_secret, time.monotonic() + 5)

    def accept():
        return wire.prove_as_acceptor(ends[1], purposes[1], acceptor_secret, time.monotonic() + 5)

    threads = [
        threading.Thread(target=run, args=("connector", connect)),
        threading.Thread(target=run, args=("acceptor", accept)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for end in ends:
        end.close()
    return outcomes["connector"], outcomes["acceptor"]


def test_header_round_trip():
    header = wire.FrameHeader(wire.DATA, 3, 2**32 - 1, 2**40, bytes(range(16)))
    packed = header.pack()
    assert len(packed) == wire.HEADER_BYTES
    assert wire.FrameHeader.unpack(packed) == header


def test_keys_tell_call_sites_apart():
    sites = [
        ("all_to_all", "a", (0, 1)),
        ("all_gather", "a", (0, 1)),
        ("all_to_all", "b", (0, 1)),
        ("all_to_all", "a", (1, 0)),
        ("all_to_all", "a", (0, 11)),
        ("all_to_all", "a", (0, 1, 1)),
    ]
    assert len({wire.collective_key(*site) for site in sites}) == len(sites)


def test_equal_secrets():
    assert shake_hands(b"one", b"one") == (None, wire.Hello(3, 8))


def test_different_secrets_fail_on_the_connecting_side_first():
    connector, acceptor = shake_hands(b"one", b"other")
    assert isinstance(connector, wire.HandshakeError) and "secret" in str(connector)
    assert isinstance(acceptor, (OSError, wire.HandshakeError))


def test_another_purpose_is_a_stranger():
    _, acceptor = shake_hands(b"one", b"one", purposes=(b"pair", b"join"))
    assert isinstance(acceptor, wire.HandshakeError) and "protocol" in str(acceptor)


def test_json_round_trip_and_limit():
    left, right = socket.socketpair()
    with left, right:
        wire.send_json(left, {"a": [1, "ü"]}, time.monotonic() + 5)
        assert wire.receive_json(right, time.monotonic() + 5) == {"a": [1, "ü"]}
        left.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(ConnectionError, match="message of 4294967295 bytes"):
            wire.receive_json(right, time.monotonic() + 5)
        for text in (b"{", b"\xff", b"[1]", b"[" * 5000, b"1" * 5000):
            left.sendall(len(text).to_bytes(4, "little") + text)
            with pytest.raises(ConnectionError, match="malformed message"):
                wire.receive_json(right, time.monotonic() + 5)


def test_deadline_and_end_of_stream():
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"ab")
        with pytest.raises(OSError):
            wire.receive_exactly(right, 3, time.monotonic() + 0.1)
        left.close()
        with pytest.raises(ConnectionError, match="connection closed"):
            wire.receive_exactly(right, 3, time.monotonic() + 5)
