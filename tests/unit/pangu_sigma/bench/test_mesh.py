"""`bench mesh`: what is measured moves the right numbers, on processes of its own; times are only looked for."""

import socket
from types import SimpleNamespace

import numpy as np
import pytest

from locmoe_ops.errors import CollectiveError, InputError
from pangu_sigma.bench import mesh
from pangu_sigma.bench.mesh import CallTime, MeshRow, PlainSockets, bench_mesh, check_contender, line_of, measure


def test_two_processes_and_three():
    """Ranks check every contender's numbers before they measure it, and end with the benchmark."""
    for ranks in (2, 3):
        rows = measure(ranks, (48, 1 << 20 if ranks == 2 else 480), gloo=False)
        assert [(row.operation, row.ranks) for row in rows] == [(one, ranks) for one in mesh.OPERATIONS for _ in "12"]
        for row in rows:
            assert row.found.keys() == {"mesh", "sockets"}
            assert all(one.seconds > 0.0 and one.processor >= 0.0 for one in row.found.values())


def test_a_contender_that_brings_other_numbers_is_named():
    wrong = SimpleNamespace(name="wrong", all_to_all=lambda array: array, all_reduce=lambda array: array)
    with pytest.raises(CollectiveError, match="all_to_all of wrong brought"):
        check_contender(wrong, 1, 2)


def test_a_rank_that_ends_is_named(monkeypatch):
    with socket.create_server((mesh.LOOPBACK, 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(mesh, "free_ports", lambda count: [taken] * count)
        with pytest.raises(CollectiveError, match=rf"bench mesh: rank 0: InputError: .*{taken}"):
            measure(2, (48,), gloo=False)


def test_a_closed_connection_is_an_error():
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises((CollectiveError, BrokenPipeError)):
        PlainSockets([None, ours], 0).all_to_all(np.ones((2, 4), np.float32))


def test_a_line_by_hand():
    """Two ranks of 1 MB: 1 MB goes each way in an exchange in all, twice that for a sum."""
    found = {"mesh": CallTime(2e-3, 1e-3), "sockets": CallTime(1e-3, 1e-3), "gloo": CallTime(3e-3, 4e-3)}
    row = MeshRow("all_reduce", 2, 1 << 20, found)
    assert row.sent == 2 * (1 << 20)
    assert line_of(row) == ["all_reduce", "2", "1,024", "2.000", "1.000", "3.000", "1.50", "0.48", "1.91"]
    del found["gloo"]
    assert line_of(row)[5:] == ["-", "-", "0.48", "-"]


@pytest.mark.parametrize(
    ("ranks", "sizes", "fragment"), [((1,), (64,), "--ranks: found 1"), ((2, 3), (64,), "expected a multiple of 12")]
)
def test_bad_input(ranks, sizes, fragment):
    with pytest.raises(InputError, match=fragment):
        bench_mesh(ranks, sizes)
