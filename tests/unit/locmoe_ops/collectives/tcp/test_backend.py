"""The Cells of four ranks, in graph mode and PyNative, against NumPy loops for result and adjoint; and those of hccl in
PyNative mode, where `helpers.mesh_functions` stands in for MindSpore's functions.

One job of four processes runs all cases, since importing MindSpore and compiling take most of the time.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.ports import free_port
from locmoe_ops.topology import Topology

WORLD = 4
HERE = Path(__file__).resolve().parents[1]
WORKER = HERE / "tcp_worker.py"

_spec = importlib.util.spec_from_file_location("tcp_worker", WORKER)
worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """What every rank saved."""
    folder = tmp_path_factory.mktemp("tcp")
    port = free_port()
    paths = os.pathsep.join(map(str, (HERE.parents[3], HERE.parents[2])))  # of the packages, and of the tests' helpers
    environment = {**os.environ, "MESH_SECRET": "right", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(WORLD), str(port), str(folder / f"{rank}.npz")],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=400)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(WORLD)]


def forward(operation, inputs, root):
    """Results of all ranks of a group from the inputs of all."""
    size = len(inputs)
    total = sum(inputs[1:], inputs[0])
    if operation == "all_to_all":
        return [np.stack([inputs[source][rank] for source in range(size)]) for rank in range(size)]
    if operation == "all_gather":
        return [np.concatenate(inputs)] * size
    if operation == "reduce_scatter":
        return np.split(total, size)
    if operation == "broadcast":
        return [inputs[root]] * size
    return [total] * size


def adjoint(operation, gradients, root):
    """Input gradients of all ranks, each an explicit sum over the outputs that its input went to."""
    size = len(gradients)
    total = sum(gradients[1:], gradients[0])
    if operation == "all_to_all":  # x_r[j] became y_j[r]
        return [np.stack([gradients[j][r] for j in range(size)]) for r in range(size)]
    if operation == "all_gather":  # x_r is part r of everybody's y
        return [sum(np.split(gradient, size)[r] for gradient in gradients) for r in range(size)]
    if operation == "reduce_scatter":  # part i of every x went into y_i
        return [np.concatenate(gradients)] * size
    if operation == "broadcast":  # everybody's y is the root's x
        return [total if r == root else np.zeros_like(total) for r in range(size)]
    return [total] * size


def check(job, mode, case, what, compute, of):
    operation, group, shape, dtype, root = worker.CASES[case]
    for ranks in Topology(WORLD, worker.RANKS_PER_NODE, WORLD).groups(group):
        source_shape = shape if of == "x" else worker.output_shape(operation, len(ranks), shape)
        values = [worker.example(case, rank, of, source_shape, dtype) for rank in ranks]
        expected = compute(operation, values, root) if len(ranks) > 1 else values
        for rank, array in zip(ranks, expected):
            result = job[rank][f"{mode}/{case}/{what}"]
            assert result.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(result, array, err_msg=f"rank {rank}")


@pytest.mark.parametrize("case", list(worker.CASES))
@pytest.mark.parametrize("mode", ["pynative", "graph", "functions"])
def test_result(job, mode, case):
    check(job, mode, case, "y", forward, "x")


@pytest.mark.parametrize("case", list(worker.CASES))
@pytest.mark.parametrize("mode", ["pynative", "graph", "functions"])
def test_gradient_is_the_adjoint(job, mode, case):
    check(job, mode, case, "dx", adjoint, "dy")


@pytest.mark.parametrize("mode", ["pynative", "graph", "functions"])
def test_uneven_parts_and_their_gradient(job, mode):
    """Row by row: each one's new place, from which its gradient comes back."""
    x, dy = (
        [worker.example("all_to_all", rank, what, shape, "float32") for rank in range(WORLD)]
        for what, shape in worker.UNEVEN_SHAPES.items()
    )
    y, dx = [np.zeros_like(array) for array in dy], [np.zeros_like(array) for array in x]
    arrived, left = [0] * WORLD, [0] * WORLD
    for target in range(WORLD):
        for source in range(WORLD):
            first = worker.UNEVEN[source, :target].sum()
            for row in range(first, first + worker.UNEVEN[source, target]):
                y[target][arrived[target]] = x[source][row]
                dx[source][row] = dy[target][arrived[target]]
                arrived[target], left[source] = arrived[target] + 1, left[source] + 1
    assert max(left) == 9 and min(left) < 9
    for rank in range(WORLD):
        np.testing.assert_array_equal(job[rank][f"{mode}/uneven/y"], y[rank])
        np.testing.assert_array_equal(job[rank][f"{mode}/uneven/dx"], dx[rank])


@pytest.mark.parametrize("mode", ["pynative", "graph", "functions"])
def test_chain_of_collectives(job, mode):
    """All-to-all exchanges the rank axis with the first axis; done twice it is the identity."""
    x = np.stack([worker.example("all_to_all", rank, "x", (4, 3, 2), "float32") for rank in range(WORLD)])
    x = x.astype(np.float64)

    def swap(v):
        return v.swapaxes(0, 1)

    value = (swap(swap(swap(x) ** 2) + x) * x).sum()
    # z = swap(x)^2 + swap(x), so the sum is <swap(x)^2 + swap(x), x>; every rank adds the total to the objective.
    gradient = WORLD * (swap(x) ** 2 + swap(x) + swap(2 * swap(x) * x + x))
    for rank in range(WORLD):
        # Integers below 2**24: float32 is exact.
        assert job[rank][f"{mode}/chain/y"] == value
        np.testing.assert_array_equal(job[rank][f"{mode}/chain/dx"], gradient[rank])


@pytest.mark.parametrize("mode", ["pynative", "functions"])
def test_exchanges_that_are_under_way_together(job, mode):
    """x, and twice x, exchanged: y is twice the square of what arrives."""
    x, dy = (
        np.stack([worker.example("all_to_all", rank, what, (4, 3, 2), "float32") for rank in range(WORLD)])
        for what in ("x", "dy")
    )
    arrived = x.swapaxes(0, 1)
    for rank in range(WORLD):
        np.testing.assert_array_equal(job[rank][f"{mode}/async/y"], 2 * arrived[rank] ** 2)
        np.testing.assert_array_equal(job[rank][f"{mode}/async/dx"], (4 * arrived * dy).swapaxes(0, 1)[rank])


def test_bytes_inside_and_between_nodes(job):
    """Counted from the algorithms' message sizes, for forward and backward in both modes."""
    inside = np.zeros(WORLD)
    between = np.zeros(WORLD)
    for case, (operation, group, shape, dtype, root) in worker.CASES.items():
        for ranks in Topology(WORLD, worker.RANKS_PER_NODE, WORLD).groups(group):
            for sender, receiver, count in messages(case, operation, len(ranks), shape, dtype, root):
                same = ranks[sender] // worker.RANKS_PER_NODE == ranks[receiver] // worker.RANKS_PER_NODE
                (inside if same else between)[ranks[sender]] += count
    for sender in range(WORLD):
        for receiver in range(WORLD):
            if sender != receiver:  # the rows there, and the gradients of those that came
                rows = worker.UNEVEN[sender, receiver] + worker.UNEVEN[receiver, sender]
                same = sender // worker.RANKS_PER_NODE == receiver // worker.RANKS_PER_NODE
                (inside if same else between)[sender] += rows * 3 * 4
    # The chain: three all-to-alls of 24-byte slices and one scalar sum, each with its backward.
    chain = 2 * (3 * 24 + 4)
    for rank in range(WORLD):
        expected = 2 * (inside[rank] + chain), 2 * (between[rank] + 2 * chain)
        assert tuple(job[rank]["bytes"]) == expected


def messages(case, operation, size, shape, dtype, root):
    """(sender, receiver, bytes) of one forward and one backward run."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    for sender in range(size):
        for receiver in range(size):
            if sender == receiver:
                continue
            if case.startswith("gathered"):  # each sends all, and gets all gradients
                yield sender, receiver, 2 * nbytes
            elif operation == "all_to_all":
                yield sender, receiver, 2 * nbytes // size
            elif operation == "all_gather":
                yield sender, receiver, 2 * nbytes
            elif operation == "reduce_scatter":
                yield sender, receiver, 2 * nbytes // size
            elif operation == "broadcast":
                yield sender, receiver, nbytes * ((sender == root) + (receiver == root))
            elif nbytes <= 8192:  # all_reduce, everybody to everybody
                yield sender, receiver, 2 * nbytes
            else:  # a part to its owner, and the sum back
                yield sender, receiver, 2 * 2 * nbytes // size


def test_independent_collectives_run_in_one_order_on_all_ranks(job):
    """With x equal on all ranks, an all-reduce is 4x, and so is its gradient: each rank's objective has a term."""
    for results in job:
        for step, (value, gradient) in enumerate(results["many"]):
            assert value == 4 * step + sum(16 * (i + 1) * step * (step + i) for i in range(8))
            # d(value)/dx on one rank with all others moving alike, which is what four equal terms sum to.
            assert gradient == 4 + sum(16 * (i + 1) * (2 * step + i) for i in range(8))


def test_times_are_counted(job):
    for results in job:
        communication, idle, overlapped = results["times"]
        assert communication > 0 and idle >= 0 and 0 <= overlapped <= communication


def test_the_mesh_keeps_the_error_that_a_graph_ran_into(job):
    for rank in range(1, WORLD):
        assert str(job[rank]["lost"]).startswith(f"rank {rank}: ")
        assert "rank 0 stopped (test)" in str(job[rank]["lost"])
