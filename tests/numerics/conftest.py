"""The job of four ranks, run once for all cases, and the same layers in this process."""

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.ports import free_port

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
LIMIT = 900  # seconds; about a minute on two free cores

# The helpers beside this file are imported by tests and by the ranks of the job alike.
sys.path.insert(0, str(FOLDER))


def _run_job(folder, ranks):
    """Runs all ranks to their end; a rank that fails ends the job with its last words."""
    settings = {"MESH_SECRET": secrets.token_hex(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [str(free_port()), str(os.getpid()), str(folder)]
    logs = [folder / f"rank_{rank}.log" for rank in range(ranks)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(FOLDER / "layer_worker.py"), str(rank), *arguments],
                        cwd=folder,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **settings},
                    )
                )
        deadline = time.monotonic() + LIMIT
        for rank, process in enumerate(processes):
            status = process.wait(max(deadline - time.monotonic(), 0.1))
            assert status == 0, f"rank {rank} ended with status {status}:\n{logs[rank].read_text()[-3000:]}"
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory):
    """`CASE/DRAW/NAME` -> array, one mapping a rank."""
    from layer_cases import RANKS

    folder = tmp_path_factory.mktemp("four_ranks")
    _run_job(folder, RANKS)
    results = []
    for rank in range(RANKS):
        with np.load(folder / f"rank_{rank}.npz") as arrays:
            results.append(dict(arrays))
    return results


@pytest.fixture(scope="session")
def one_process():
    """`run(case, draw, mode)`: what a single process computes from the tokens of all ranks. A case is compiled once."""
    from compiled_layer import CompiledLayer
    from layer_cases import CASES, RANKS, TOKENS, batch_of, on_one_rank

    import mindspore as ms

    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.topology import Topology

    layers = {}

    def run(name, draw, mode=ms.GRAPH_MODE):
        case, before = CASES[name], ms.get_context("mode")
        ms.set_context(mode=mode)
        if (name, mode) not in layers:
            layers[name, mode] = CompiledLayer(case, create_collectives("local", Topology(1, 1), 0), RANKS * TOKENS)
        tokens, gradients = on_one_rank(*batch_of(case, draw))
        results = layers[name, mode].run(tokens[0], gradients[0])
        ms.set_context(mode=before)
        return results

    return run
