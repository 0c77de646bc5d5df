"""The job of four ranks, run once for all cases, and the same layers in this process."""

import os
import secrets
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.ports import free_port
from helpers.ranks import run_ranks

FOLDER = Path(__file__).parent
LIMIT = 900  # seconds; about a minute on two free cores

# The helpers beside this file are imported by tests and by the ranks of the job alike.
sys.path.insert(0, str(FOLDER))


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory):
    """`CASE/DRAW/NAME` -> array, one mapping a rank."""
    from layer_cases import RANKS

    folder = tmp_path_factory.mktemp("four_ranks")
    place = [free_port(), os.getpid(), folder]
    commands = [[FOLDER / "layer_worker.py", rank, *place] for rank in range(RANKS)]
    run_ranks(commands, LIMIT, folder, MESH_SECRET=secrets.token_hex())
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
