"""Which of MindSpore's functions the Cells of hccl call in PyNative mode: operation, group, shapes and order, forward
and backward. What comes of them on four ranks is in tcp/test_backend.py. Stand-ins: no device runs here.
"""

import numpy as np
import pytest

import mindspore as ms
from mindspore import ops

from helpers.mesh_functions import MeshFunctions
from locmoe_ops.collectives import hccl
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology

WORLD = hccl.GlobalComm.WORLD_COMM_GROUP
NODE, RAIL = "locmoe_node_2_2", "locmoe_rail_1_2"  # of rank 3


class PlayedMesh:
    """A mesh whose other ranks send what this one does."""

    rank, world_size = 3, 4

    def all_to_all(self, ranks, tag, array):
        return array

    def start_all_to_all(self, ranks, tag, array):
        class Running:
            def wait(self):
                return array

        return Running()

    def all_to_all_v(self, ranks, tag, array, sent, arriving, limit):
        self.split = sent.tolist(), arriving.tolist()
        return np.resize(array, limit)

    def all_gather(self, ranks, tag, array):
        return np.concatenate([array] * len(ranks))

    def reduce_scatter(self, ranks, tag, array):
        return array[: len(array) // len(ranks)] * len(ranks)

    def all_reduce(self, ranks, tag, array):
        return array * len(ranks)

    def broadcast(self, ranks, tag, array, root):
        self.root = ranks[root]
        return array


@pytest.fixture
def functions(monkeypatch, pynative_mode):
    """Of rank 3 of two nodes of two; primitives that communicate are not to be made."""
    for name in ("AlltoAll", "AlltoAllVC", "AllGather", "ReduceScatter", "AllReduce", "Broadcast"):
        monkeypatch.setattr(ops, name, None, raising=False)  # AlltoAllVC: not in 2.7.0
    functions = MeshFunctions(PlayedMesh())
    functions.install(monkeypatch.setattr)
    return functions


@pytest.fixture
def collectives(functions):
    return create_collectives("hccl", Topology(4, 2, 4), 3, eager=True)


def run(cell, shape, *others):
    """Output and gradient of sum(y * y) / 2, which is what is sent back: y."""
    x = ms.Tensor(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    return ms.value_and_grad(lambda x: (cell(x, *others) ** 2).sum() / 2, 0)(x)


@pytest.mark.parametrize(
    ("operation", "group", "shape", "forward", "backward"),
    [
        ("all_to_all", "world", (4, 3), ("all_to_all", WORLD, (4, 3)), ("all_to_all", WORLD, (4, 3))),
        ("all_to_all", "node", (2, 3), ("all_to_all", NODE, (2, 3)), ("all_to_all", NODE, (2, 3))),
        ("all_gather", "rail", (3, 2), ("all_gather", RAIL, (3, 2)), ("reduce_scatter", RAIL, (6, 2))),
        ("reduce_scatter", "node", (4, 2), ("reduce_scatter", NODE, (4, 2)), ("all_gather", NODE, (2, 2))),
        ("all_reduce", "world", (5, 4), ("all_reduce", WORLD, (1, 5, 4)), ("all_reduce", WORLD, (1, 5, 4))),
        ("all_reduce", "node", (), ("all_reduce", NODE, (1,)), ("all_reduce", NODE, (1,))),
        ("broadcast", "rail", (3,), ("broadcast", RAIL, (3,)), ("all_reduce", RAIL, (1, 3))),
    ],
)
def test_function_group_and_shape_there_and_back(functions, collectives, operation, group, shape, forward, backward):
    run(getattr(collectives, operation)(group, "layer"), shape)
    assert functions.calls == [forward, backward]


def test_a_broadcast_names_its_root_by_the_rank_of_the_job(functions, collectives):
    run(collectives.broadcast("rail", "layer", root=0), (3,))
    assert functions.mesh.root == 1  # of ranks 1 and 3


def test_an_all_to_all_of_gathered_parts(functions, collectives):
    collectives.gathered = True
    run(collectives.all_to_all("node", "layer"), (2, 3))
    assert functions.calls == [("all_gather", NODE, (2, 3)), ("reduce_scatter", NODE, (4, 3))]


def test_parts_of_unequal_size_are_counted_in_numbers(functions, collectives):
    """Rows of two numbers; each rank sends itself one row more (see `hccl._Uneven`). Back the other way round."""
    counts = np.array([[0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 2, 1]], np.int32)
    cell = collectives.all_to_all_v("world", "layer", 5, 6)
    forward = cell(ms.Tensor(np.ones((5, 2), np.float32)), ms.Tensor(counts))
    assert forward.shape == (6, 2) and functions.mesh.split == ([2, 0, 4, 4], [4, 0, 2, 4])
    run(cell, (5, 2), ms.Tensor(counts))
    assert functions.mesh.split == ([4, 0, 2, 4], [2, 0, 4, 4])
    assert functions.calls == [("all_to_all_v", WORLD, (10,))] * 3


def test_what_is_started_is_under_way_until_the_wait(functions, collectives):
    """Two exchanges: the second one's gradient is started, and waited for, before the first's or after it, but starts
    come before waits.
    """
    pairs = [collectives.all_to_all_async("world", f"chunk {i}") for i in range(2)]

    def both(x):
        handles = [pair.start(x) for pair in pairs]
        return sum(pair.wait(handle) for pair, handle in zip(pairs, handles))

    _, dx = run(both, (4, 3))
    assert [name for name, *_ in functions.calls] == ["start", "start", "wait", "wait"] * 2
    x = np.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(dx.asnumpy(), 4 * x)  # y = 2 x, and dy comes back twice


def test_inputs_are_not_written_into(functions, collectives):
    """MindSpore's sums and broadcasts work in place."""
    x = ms.Tensor(np.ones(3, np.float32))
    for cell in (collectives.all_reduce("world", "sum"), collectives.broadcast("world", "share")):
        cell(x)
        np.testing.assert_array_equal(x.asnumpy(), np.ones(3))


def test_a_tensor_that_is_a_view_is_made_contiguous(functions, collectives):
    """The functions read memory as it lies; the stand-ins refuse what is not contiguous."""
    x = ms.Tensor(np.arange(8, dtype=np.float32).reshape(2, 4)).transpose(1, 0)
    for cell in (
        collectives.all_to_all("world", "exchange"),
        collectives.all_gather("world", "gather"),
        collectives.reduce_scatter("world", "scatter"),
    ):
        cell(x)
    exchange = collectives.all_to_all_async("world", "async")
    np.testing.assert_array_equal(exchange.wait(exchange.start(x)).asnumpy(), x.asnumpy())


def test_a_barrier_is_a_sum_over_the_world(functions, collectives):
    collectives.barrier()
    assert functions.calls == [("all_reduce", WORLD, (1, 1))]
