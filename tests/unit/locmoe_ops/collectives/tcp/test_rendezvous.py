"""Joining: who is admitted, who is named, and what strangers can do (nothing)."""

import os
import socket
import threading
import time

import pytest

from locmoe_ops.collectives.tcp import wire
from locmoe_ops.collectives.tcp.rendezvous import connect_ranks
from locmoe_ops.errors import CollectiveError, InputError


def join_all(port, calls):
    """Each call's arguments override the defaults of a good rank; what each returned or raised."""
    results = [None] * len(calls)

    def run(index, overrides):
        settings = {
            "world_size": 3,
            "root": ("127.0.0.1", port),
            "secret": b"right",
            "bind": "127.0.0.1",
            "timeout": 1.5,
            **overrides,
        }
        try:
            results[index] = connect_ranks(**settings)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(i, call), daemon=True) for i, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for result in results:
        if isinstance(result, dict):
            for sock in result.values():
                sock.close()
    return results


def test_every_rank_gets_a_socket_to_every_other(free_port):
    results = join_all(free_port(), [{"rank": rank, "timeout": 20.0} for rank in range(3)])
    assert [sorted(result) for result in results] == [[1, 2], [0, 2], [0, 1]]


def test_nobody_listens_beyond_the_given_address(free_port):
    """While rank 0 waits, its port is open on 127.0.0.1 and closed on 127.0.0.2."""
    port = free_port()
    thread = threading.Thread(target=join_all, args=(port, [{"rank": 0}]))
    thread.start()
    deadline = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=1)
    thread.join(20)


def test_a_missing_rank_is_named_on_all_others(free_port):
    port = free_port()
    results = join_all(port, [{"rank": 0}, {"rank": 1}])
    for rank, error in enumerate(results):
        assert isinstance(error, CollectiveError)
        assert str(error) == f"rank {rank}: join of the mesh at 127.0.0.1:{port}: rank 2 did not join within 1.5 s"


def test_a_wrong_secret_is_refused_and_told(free_port):
    results = join_all(free_port(), [{"rank": 0}, {"rank": 1}, {"rank": 2, "secret": b"wrong"}])
    assert "rank 2 did not join within 1.5 s (1 other connections refused" in str(results[0])
    assert "rank 2 did not join" in str(results[1])
    assert "does not know this job's secret" in str(results[2])


def test_ranks_must_agree_on_their_number(free_port):
    results = join_all(free_port(), [{"rank": 0}, {"rank": 1, "world_size": 4}])
    for error in results:
        assert "rank 1 expects 4 ranks, rank 0 expects 3" in str(error)


def test_two_processes_with_one_rank(free_port):
    results = join_all(free_port(), [{"rank": 0}, {"rank": 1}, {"rank": 1}])
    for error in results:
        assert "two processes say they are rank 1" in str(error)


def test_a_member_that_dies_while_joining(free_port):
    """It has proved itself and is gone before the others come: no need to wait for the deadline to tell."""
    port = free_port()
    outcome = []
    root = threading.Thread(target=lambda: outcome.extend(join_all(port, [{"rank": 0, "timeout": 30.0}])))
    root.start()
    begin = time.monotonic()
    with _knock(port) as member:
        wire.prove_as_connector(member, b"join", wire.Hello(1, 3), b"right", begin + 5)
        wire.send_json(member, {"host": "127.0.0.1", "port": 1}, begin + 5)
    root.join(40)
    assert "rank 0: join" in str(outcome[0]) and "lost rank 1 (connection closed)" in str(outcome[0])
    assert time.monotonic() - begin < 15


def test_no_root(free_port):
    (error,) = join_all(free_port(), [{"rank": 1, "timeout": 0.5}])
    assert "rank 1: join" in str(error) and "cannot reach rank 0 within 0.5 s" in str(error)


def test_port_in_use_names_it():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (error,) = join_all(port, [{"rank": 0}])
    assert isinstance(error, InputError)
    assert f"port in use: 127.0.0.1:{port}" in str(error)


def test_an_address_of_another_machine(free_port):
    (error,) = join_all(free_port(), [{"rank": 0, "bind": "192.0.2.1"}])  # reserved for documentation
    assert isinstance(error, InputError) and "cannot listen on 192.0.2.1" in str(error)


def test_strangers_do_not_disturb(free_port):
    """Noise, a web client, a silent connection and half a greeting come first; the job joins all the same."""
    port = free_port()
    outcome = []
    ranks = threading.Thread(
        target=lambda: outcome.extend(join_all(port, [{"rank": 0, "timeout": 20.0, "world_size": 2}]))
    )
    ranks.start()
    strangers = []
    for noise in (os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n", b"", b"locmesh1join\0"):
        strangers.append(_knock(port))
        strangers[-1].sendall(noise)
    outcome_of_member = join_all(port, [{"rank": 1, "timeout": 20.0, "world_size": 2}])
    ranks.join(30)
    for stranger in strangers:
        stranger.close()
    assert [sorted(result) for result in outcome + outcome_of_member] == [[1], [0]]


def _knock(port):
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_silent_connections_do_not_keep_ranks_out_and_are_told_in_one_line(free_port, caplog):
    """More of them than there are handshakes at once, all left open: a handshake may take longer than the job has to
    join.
    """
    port, outcome = free_port(), []
    root = threading.Thread(
        target=lambda: outcome.extend(join_all(port, [{"rank": 0, "timeout": 4.0, "world_size": 2}]))
    )
    root.start()
    strangers = [_knock(port) for _ in range(200)]
    outcome += join_all(port, [{"rank": 1, "timeout": 4.0, "world_size": 2}])
    root.join(30)
    for stranger in strangers:
        stranger.close()
    assert [sorted(result) for result in outcome] == [[1], [0]] or [sorted(result) for result in outcome] == [[0], [1]]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"mesh at 127.0.0.1:{port}: ") and line.endswith(
        " refused, the last: 127.0.0.1: connection closed"
    )


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"host": "127.0.0.1"},
        {"host": 3, "port": 4},
        {"host": "somewhere", "port": 4},
        {"host": "127.0.0.1", "port": 70000},
        {"host": "127.0.0.1", "port": "4"},
    ],
)
def test_a_rank_that_does_not_say_where_it_listens_is_not_admitted(free_port, message):
    port, outcome = free_port(), []
    root = threading.Thread(
        target=lambda: outcome.extend(join_all(port, [{"rank": 0, "timeout": 0.5, "world_size": 2}]))
    )
    root.start()
    with _knock(port) as member:
        wire.prove_as_connector(member, b"join", wire.Hello(1, 2), b"right", time.monotonic() + 5)
        wire.send_json(member, message, time.monotonic() + 5)
        root.join(30)
    assert (
        "rank 1 did not join within 0.5 s (1 other connections refused, the last: 127.0.0.1: malformed message"
        in str(outcome[0])
    )


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"addresses": {}, "seconds": 1},
        {"addresses": {"1": ["127.0.0.1", 1]}, "seconds": float("nan")},
        {"addresses": {"1": ["127.0.0.1", 1]}, "seconds": "soon"},
        {"addresses": {"1": 3}, "seconds": 1},
    ],
)
def test_a_first_rank_that_answers_nonsense_is_lost(free_port, answer):
    """It knows the secret, as a rank of another release would."""
    port, outcome = free_port(), []
    with socket.create_server(("127.0.0.1", port)) as listener:
        member = threading.Thread(target=lambda: outcome.extend(join_all(port, [{"rank": 2}])))
        member.start()
        sock, _ = listener.accept()
        with sock:
            wire.prove_as_acceptor(sock, b"join", b"right", time.monotonic() + 5)
            wire.receive_json(sock, time.monotonic() + 5)
            wire.send_json(sock, answer, time.monotonic() + 5)
            member.join(30)
    assert isinstance(outcome[0], CollectiveError) and "rank 2: join" in str(outcome[0])
    assert "lost rank 0 (malformed message while joining)" in str(outcome[0])
