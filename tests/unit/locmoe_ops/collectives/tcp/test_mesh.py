"""Collectives on NumPy arrays against loops over what every rank put in."""

import threading
import time

import numpy as np
import pytest

from locmoe_ops.collectives.tcp.mesh import join_mesh
from locmoe_ops.errors import CollectiveError, InputError

DTYPES = ["float32", "float64", "float16", "int32", "int64", "uint8", "bool"]


def data(rank, shape, dtype="float32"):
    """What `rank` puts in; small integers, so that sums are exact in every dtype."""
    return np.random.default_rng(1000 + rank).integers(0, 2 if dtype == "bool" else 9, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_collective_for_every_dtype(run_ranks, dtype):
    world, shape = 3, (6, 5)

    def job(mesh):
        x = data(mesh.rank, shape, dtype)
        ranks = range(world)
        results = {
            "all_to_all": mesh.all_to_all(ranks, "t", x.reshape(3, 2, 5)),
            "all_gather": mesh.all_gather(ranks, "t", x),
            "broadcast": mesh.broadcast(ranks, "t", x, root=1),
        }
        if dtype != "bool":
            results["all_reduce"] = mesh.all_reduce(ranks, "t", x)
            results["reduce_scatter"] = mesh.reduce_scatter(ranks, "t", x)
            results["reduce"] = mesh.reduce(ranks, "t", x, root=2)
        return results

    inputs = [data(rank, shape, dtype) for rank in range(world)]
    for rank, results in enumerate(run_ranks(world, job)):
        expected = {
            "all_to_all": np.stack([x.reshape(3, 2, 5)[rank] for x in inputs]),
            "all_gather": np.concatenate(inputs),
            "broadcast": inputs[1],
            "all_reduce": inputs[0] + inputs[1] + inputs[2],
            "reduce_scatter": (inputs[0] + inputs[1] + inputs[2])[2 * rank : 2 * rank + 2],
            "reduce": (inputs[0] + inputs[1] + inputs[2]) * (rank == 2),
        }
        for name, result in results.items():
            assert result.dtype == np.dtype(dtype), name
            np.testing.assert_array_equal(result, expected[name], err_msg=name)


COUNTS = np.array([[2, 0, 3], [0, 0, 1], [4, 1, 0]])  # rows from rank (first axis) to rank; no pair need have any


@pytest.mark.parametrize("counts", [COUNTS, 0 * COUNTS], ids=["some", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_uneven_parts_arrive_in_the_order_of_ranks(run_ranks, counts, dtype):
    world, rows, limit = 3, 6, 8
    inputs = [data(rank, (rows, 5), dtype) + 1 for rank in range(world)]

    def job(mesh):
        result = mesh.all_to_all_v(range(world), "t", inputs[mesh.rank], counts[mesh.rank], counts[:, mesh.rank], limit)
        return result, mesh.counters.bytes_sent

    for rank, (result, sent) in enumerate(run_ranks(world, job)):
        expected = np.zeros((limit, 5), dtype)
        arrived = [
            inputs[source][counts[source, :rank].sum() + i]
            for source in range(world)
            for i in range(counts[source, rank])
        ]
        if arrived:
            expected[: len(arrived)] = arrived
        np.testing.assert_array_equal(result, expected)
        real_rows = np.where(np.arange(world) == rank, 0, counts[rank])
        np.testing.assert_array_equal(sent, real_rows * 5 * np.dtype(dtype).itemsize)


@pytest.mark.parametrize(
    "send, receive, fragment",
    [
        ([7], [7], "send counts [7] for 1 ranks and 6 rows"),
        ([1], [9], "receive counts [9] for 1 ranks and 8 rows"),
        ([1, 0], [1], "send counts [1, 0] for 1 ranks"),
        ([-1], [1], "send counts [-1]"),
        ([2], [1], "1 rows to receive from itself, 2 to send"),
    ],
)
def test_impossible_counts_are_named(send, receive, fragment):
    mesh = join_mesh(0, 1, ("127.0.0.1", 1), b"secret")
    try:
        with pytest.raises(InputError) as caught:
            mesh.all_to_all_v([0], "t", np.zeros((6, 2)), np.array(send), np.array(receive), 8)
        assert fragment in str(caught.value)
    finally:
        mesh.close()


def test_counts_that_disagree_end_the_job(run_ranks):
    def job(mesh):
        counts = np.array([1 + mesh.rank, 1])  # rank 0 sends 1 row to rank 1, which expects 2
        mesh.all_to_all_v(range(2), "t", np.zeros((4, 1), np.float32), np.array([1, 1]), counts, 4)

    _, error = run_ranks(2, job)  # rank 0 has what it expects and may be through already
    assert isinstance(error, CollectiveError) and "rank 0 sent 4 bytes where rank 1 expected 8" in str(error)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 0), (2049,), (1000, 257)])
def test_all_reduce_of_any_shape_has_the_same_bits_everywhere(run_ranks, shape):
    """Scalars, sizes that the ranks do not divide, empty, and sizes on both sides of the two-round algorithm."""
    inputs = [np.asarray(np.random.default_rng(rank).standard_normal(shape), np.float32) for rank in range(4)]
    results = run_ranks(4, lambda mesh: mesh.all_reduce(range(4), "sum", inputs[mesh.rank]))
    expected = ((inputs[0] + inputs[1]) + inputs[2]) + inputs[3]  # rank order, in float32
    for result in results:
        assert result.shape == shape
        assert np.asarray(result).tobytes() == np.asarray(expected, np.float32).tobytes()


@pytest.mark.parametrize("size", [0, 1, 7, 4096, 9001])
def test_a_sum_by_node_crosses_between_nodes_once(run_ranks, size):
    """Three nodes of two ranks: neighbours first, then the rail, in the order of ranks; bytes as drawn by hand."""
    inputs = [np.random.default_rng(rank).standard_normal(size).astype(np.float32) for rank in range(6)]

    def job(mesh):
        node, rail = (mesh.rank // 2 * 2, mesh.rank // 2 * 2 + 1), (mesh.rank % 2, mesh.rank % 2 + 2, mesh.rank % 2 + 4)
        return mesh.start_hierarchical_all_reduce(
            range(6), "sum", inputs[mesh.rank], node, rail
        ).wait(), mesh.counters.bytes_sent

    results = run_ranks(6, job)
    pairs = [inputs[0] + inputs[1], inputs[2] + inputs[3], inputs[4] + inputs[5]]
    half = (
        size + 1
    ) // 2  # what a rank stands for: sent to its neighbour twice, the scattered half and the gathered one
    for rank, (result, sent) in enumerate(results):
        assert result.tobytes() == ((pairs[0] + pairs[1]) + pairs[2]).tobytes()
        assert sent[rank ^ 1] == 2 * half * 4
        across = [sent[peer] for peer in range(6) if peer // 2 != rank // 2 and peer % 2 == rank % 2]
        if half * 4 <= 8192:  # one round: everybody's half to everybody
            assert across == [half * 4] * 2
        else:  # a third to each of two, and the own third's sum to each of two; a half is not always three equal thirds
            assert abs(sum(across) - 4 * half * 4 / 3) < 4 * 4
        assert sum(sent) == sent[rank ^ 1] + sum(across)


def test_float16_is_summed_in_float32(run_ranks):
    """2048 + 1 is 2048 in float16: summed pairwise in float16, the three ones would be lost."""
    values = [2048.0, 1.0, 1.0, 1.0]
    results = run_ranks(4, lambda mesh: mesh.all_reduce(range(4), "sum", np.full(3, values[mesh.rank], np.float16)))
    for result in results:
        assert result.dtype == np.float16
        assert result.tolist() == [float(np.float16(2051.0))] * 3


def test_large_messages_cross_each_other(run_ranks):
    """More than the sockets hold, in both directions at once."""
    results = run_ranks(2, lambda mesh: mesh.all_to_all([0, 1], "big", np.full((2, 3_000_000), mesh.rank, np.float32)))
    for result in results:
        assert (result[0] == 0).all() and (result[1] == 1).all()


def test_disjoint_and_overlapping_groups_in_their_own_order(run_ranks):
    def job(mesh):
        pair = [0, 2] if mesh.rank % 2 == 0 else [3, 1]
        gathered = mesh.all_gather(pair, "pair", np.array([mesh.rank]))
        return gathered.tolist(), mesh.all_gather(range(4), "all", np.array([mesh.rank])).tolist()

    for rank, (pair, everyone) in enumerate(run_ranks(4, job)):
        assert pair == ([0, 2] if rank % 2 == 0 else [3, 1])
        assert everyone == [0, 1, 2, 3]


def test_runs_of_one_tag_and_started_operations_do_not_mix(run_ranks):
    """Ranks wait in different orders, and run ahead of each other."""

    def job(mesh):
        handles = [
            mesh.start_all_gather(range(3), tag, np.array([10 * i + mesh.rank]))
            for i, tag in enumerate(["a", "a", "b"])
        ]
        order = [2, 1, 0] if mesh.rank == 0 else [0, 1, 2]
        results = {i: handles[i].wait().tolist() for i in order}
        return [results[i] for i in range(3)]

    for result in run_ranks(3, job):
        assert result == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_a_started_operation_goes_on_without_its_caller(run_ranks):
    """Rank 0 never waits while the others finish a collective of two rounds that needs rank 0's sums."""
    others_done = threading.Barrier(3)

    def job(mesh):
        handle = mesh.start_all_reduce(range(3), "sum", np.ones(100_000, np.float32))
        if mesh.rank:
            total = handle.wait()
            others_done.wait(20)
        else:
            others_done.wait(20)
            total = handle.wait()
        return float(total.sum())

    assert run_ranks(3, job) == [300_000.0] * 3


def test_one_rank_alone():
    mesh = join_mesh(0, 1, ("127.0.0.1", 1), b"secret")
    x = np.arange(3.0)
    assert mesh.all_to_all([0], "t", x[None]).tolist() == [x.tolist()]
    assert mesh.all_reduce([0], "t", x).tolist() == x.tolist()
    assert mesh.reduce_scatter([0], "t", x).tolist() == x.tolist()
    mesh.barrier([0], "t")
    mesh.close()
    mesh.close()


def test_bytes_are_counted_by_destination(run_ranks):
    def job(mesh):
        mesh.all_to_all(range(3), "t", np.zeros((3, 7), np.float64))
        if mesh.rank < 2:
            mesh.all_gather([0, 1], "t", np.zeros(5, np.int32))
        mesh.barrier(range(3), "end")
        return mesh.counters.bytes_sent

    for rank, sent in enumerate(run_ranks(3, job)):
        expected = np.array([56 if peer != rank else 0 for peer in range(3)])
        if rank < 2:
            expected[1 - rank] += 20
        assert sent.dtype == np.int64
        assert sent.tolist() == expected.tolist()


def test_rounds_that_run_unattended_are_overlapped(run_ranks):
    """A sum of several rounds, all of which run while the caller sleeps: nothing of its communication is waited for."""
    delay = 0.4

    def job(mesh):
        mesh.barrier(range(2), "ready")
        before, began = mesh.counters, time.monotonic()
        running = mesh.start_all_reduce(range(2), "sum", np.ones(100_000, np.float32))
        time.sleep(delay)
        running.wait()
        after = mesh.counters
        return [after[i] - before[i] for i in (1, 2, 3)], time.monotonic() - began

    for (communication, idle, overlapped), took in run_ranks(2, job):
        assert 0 < communication < took
        assert overlapped + (took - delay) >= communication and idle <= took - delay


def test_waiting_for_a_late_peer_is_idle_time(run_ranks):
    delay = 0.4

    def job(mesh):
        mesh.barrier(range(2), "start")
        before = mesh.counters
        if mesh.rank:
            time.sleep(delay)
        mesh.all_gather(range(2), "late", np.zeros(4))
        after = mesh.counters
        return after.idle_s - before.idle_s, after.communication_s - before.communication_s

    (idle, communication), (late_idle, _) = run_ranks(2, job)
    assert idle > 0.5 * delay  # the barrier lets the ranks go within far less than half the delay
    assert communication >= 0.0 and late_idle < idle


def test_different_shapes_are_an_error_that_says_so(run_ranks):
    results = run_ranks(2, lambda mesh: mesh.all_gather([0, 1], "odd", np.zeros(3 + mesh.rank, np.float32)))
    for rank, error in enumerate(results):
        assert isinstance(error, CollectiveError)
        assert str(error).startswith(f"rank {rank}: all_gather 'odd' on [0, 1]: ")
    assert any("shapes or dtypes differ" in str(error) for error in results)


def test_abort_reaches_everyone_and_stays(run_ranks):
    started = threading.Barrier(3)

    def job(mesh):
        mesh.barrier(range(3), "start")
        started.wait(20)
        if mesh.rank == 1:
            mesh.abort("out of memory")
            return mesh.failure
        with pytest.raises(CollectiveError, match="rank 1 stopped .out of memory."):
            mesh.barrier(range(3), "work", "world")
        with pytest.raises(CollectiveError, match=f"rank {mesh.rank}: barrier 'later'.*rank 1 stopped"):
            mesh.barrier(range(3), "later")
        return mesh.failure

    for rank, failure in enumerate(run_ranks(3, job)):
        assert isinstance(failure, CollectiveError) and str(failure).startswith(f"rank {rank}: ")


def test_failure_hooks(run_ranks):
    """Rank 0 knows why it stopped. Rank 1 is told at once, and again as it does not look at its mesh; rank 2 closes."""
    calls = {rank: [] for rank in range(3)}
    called, started = threading.Event(), threading.Barrier(3)

    def job(mesh):
        mesh.on_failure = lambda error: calls[mesh.rank].append("at once")
        mesh.on_unnoticed = lambda error: (calls[mesh.rank].append(str(error)), called.set())
        mesh.barrier(range(3), "start")
        started.wait(20)
        if mesh.rank == 0:
            mesh.abort("test")
        elif mesh.rank == 1:
            assert called.wait(20)

    assert run_ranks(3, job) == [None] * 3
    assert calls[0] == [] and "at once" not in calls[2][1:]
    assert calls[1] == [
        "at once",
        "rank 1: after barrier 'start' on [0, 1, 2]: rank 0 stopped (test); told by rank 0, "
        "after barrier 'start' on [0, 1, 2]",
    ]


def test_a_peer_that_left_cannot_be_waited_for(run_ranks):
    started = threading.Barrier(2)

    def job(mesh):
        mesh.barrier(range(2), "start")
        started.wait(20)
        if mesh.rank == 1:
            return
        mesh.all_gather([0, 1], "after", np.zeros(1))

    error = run_ranks(2, job)[0]
    assert isinstance(error, CollectiveError)
    assert str(error) == "rank 0: all_gather 'after' on [0, 1]: rank 1 has left the job"


def test_what_a_peer_sent_before_it_left_still_counts(run_ranks):
    def job(mesh):
        mesh.barrier(range(2), "start")
        if mesh.rank == 0:
            return mesh.broadcast([0, 1], "last words", np.arange(5.0))
        time.sleep(0.2)
        return mesh.broadcast([0, 1], "last words", np.zeros(5))

    assert run_ranks(2, job)[1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "call, fragment",
    [
        (lambda mesh: mesh.all_to_all([0], "t", np.zeros((2, 3))), "shape .2, 3. for 1 ranks"),
        (lambda mesh: mesh.reduce_scatter([0, 1], "t", np.zeros(3)), "shape .3,. for 2 ranks"),
        (lambda mesh: mesh.all_gather([0], "t", np.float32(1.0)), "scalar"),
        (lambda mesh: mesh.barrier([0, 1], "t"), "expected distinct ranks of 0..0"),
        (lambda mesh: mesh.barrier([0, 0], "t"), "expected distinct ranks"),
        (lambda mesh: mesh.broadcast([0], "t", np.zeros(1), root=1), "root 1 is outside"),
        (lambda mesh: mesh.all_reduce([0], "t", np.array([None])), "cannot be sent"),
    ],
)
def test_misuse_is_named(call, fragment):
    mesh = join_mesh(0, 1, ("127.0.0.1", 1), b"secret")
    try:
        with pytest.raises(InputError, match=fragment):
            call(mesh)
    finally:
        mesh.close()


def test_rank_outside_the_world():
    with pytest.raises(InputError, match="rank 2 is outside 0..1"):
        join_mesh(2, 2, ("127.0.0.1", 1), b"secret")
