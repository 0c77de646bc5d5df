"""Choosing a backend, and the backend of one process."""

import numpy as np
import pytest

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.tcp.mesh import join_mesh
from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology

ONE = Topology(1, 1)


@pytest.mark.parametrize(
    "backend, topology, rank, fragment",
    [
        ("mpi", ONE, 0, "unknown backend 'mpi', expected one of hccl, tcp, local"),
        ("tcp", ONE, 0, "needs a mesh"),
        ("local", Topology(2, 2), 0, "serves one process, the topology has 2"),
        ("local", ONE, 1, "rank 1 is outside 0..0"),
    ],
)
def test_impossible_choices_are_named(backend, topology, rank, fragment):
    with pytest.raises(InputError, match=fragment):
        create_collectives(backend, topology, rank)


def test_the_mesh_must_be_of_this_job():
    mesh = join_mesh(0, 1, ("127.0.0.1", 1), b"secret")
    try:
        with pytest.raises(InputError, match="rank 1 of 2 was given the mesh of rank 0 of 1"):
            create_collectives("tcp", Topology(2, 2), 1, mesh)
    finally:
        mesh.close()


@pytest.fixture
def pynative():
    """Step by step, whatever mode other tests left, which gets it back."""
    import mindspore as ms

    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield ms
    ms.set_context(mode=before)


def test_one_process_exchanges_with_itself(pynative):
    ms = pynative
    collectives = create_collectives("local", ONE, 0)
    x = ms.Tensor(np.arange(6, dtype=np.float32).reshape(1, 6))
    for make in (
        collectives.all_to_all,
        collectives.all_gather,
        collectives.reduce_scatter,
        collectives.all_reduce,
        collectives.broadcast,
    ):
        cell = make("ep", "tag")
        np.testing.assert_array_equal(cell(x).asnumpy(), x.asnumpy())
        gradient = ms.grad(lambda x, cell=cell: (cell(x) * x).sum())(x)
        np.testing.assert_array_equal(gradient.asnumpy(), 2 * x.asnumpy())
    collectives.barrier()
    assert collectives.bytes_sent()[:2] == (0, 0)
    assert collectives.times() == (0.0, 0.0, 0.0)
    collectives.close()


@pytest.mark.parametrize("count", [0, 3, 5])
def test_one_process_keeps_its_own_rows(pynative, count):
    ms = pynative
    cell = create_collectives("local", ONE, 0).all_to_all_v("ep", "tag", 5, 7)
    x, dy = (ms.Tensor(np.random.default_rng(rows).standard_normal((rows, 2)).astype(np.float32)) for rows in (5, 7))
    counts = ms.Tensor(np.array([[count]], np.int32))
    y, gradient = ms.value_and_grad(lambda x: (cell(x, counts) * dy).sum())(x)
    np.testing.assert_array_equal(cell(x, counts).asnumpy()[:count], x.asnumpy()[:count])
    assert not cell(x, counts).asnumpy()[count:].any()
    np.testing.assert_array_equal(gradient.asnumpy(), np.where(np.arange(5)[:, None] < count, dy.asnumpy()[:5], 0))


def test_more_rows_than_there_is_room_for_are_not_lost_in_silence(pynative):
    ms = pynative
    cell, counts = (
        create_collectives("local", ONE, 0).all_to_all_v("ep", "tag", 5, 4),
        ms.Tensor(np.array([[5]], np.int32)),
    )
    assert np.isnan(cell(ms.Tensor(np.ones((5, 2), np.float32)), counts).asnumpy()).all()


def test_broadcast_root_is_an_index_of_the_group():
    with pytest.raises(InputError, match="root 1 is outside the 1 ranks of group ep"):
        create_collectives("local", ONE, 0).broadcast("ep", "tag", root=1)
