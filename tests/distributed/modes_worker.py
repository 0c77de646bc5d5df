"""One rank of the modes job: each of `CASES` trained in graph mode, in PyNative mode, and in PyNative mode with the
functions that hccl calls there, for which `helpers.mesh_functions` stands in.

usage: modes_worker.py OUTPUT     (as one of two ranks, and of four, of two nodes)

Leaves `RANKS_RANK.npz` with arrays `CASE/MODE/WHAT`: `history` <float64>[steps, 4], task loss, balancing loss and
locality loss a token, and gradient norm; `first/NAME`, Adam's first moment after the first step, which is the gradient
times a constant; `last/NAME`, each parameter after the last step. And `called/CASE`, operations of hccl's functions
that ran.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Dict

import numpy as np

import mindspore as ms

from helpers.mesh_functions import MeshFunctions
from helpers.traffic import MODEL
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.config.derived import micro_batch_sequences, micro_batches_per_step
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.train.engine import TrainEngine

STEPS, NODES, VOCABULARY = 2, 2, 50
MODES = ("graph", "pynative", "functions")
# Every dispatcher and way of travelling; routers with and without weights, losses and statistics; steps of one
# micro-batch and of several; both types of matmuls; experts with a replica, tensor parallelism.
CASES: Dict[str, Dict[str, Any]] = {
    "hierarchical, overlapped, half": {
        "moe": {"router": {"type": "switch", "top_k": 2}, "dispatch": {"type": "hierarchical", "chunks": 2}},
        "parallel": {"expert": 2},
        "train": {"micro_batch_size": 2},
        "runtime": {"precision": "fp16"},
    },
    "ragged": {
        "moe": {"router": {"type": "hash"}, "dispatch": {"type": "ragged"}},
        "parallel": {"expert": 2},
    },
    "flat, group-wise, shared state": {
        "moe": {
            "router": {"type": "locmoe", "statistics": "node", "locmoe": {"locality_loss_weight": 0.1}},
            "dispatch": {"group_wise": True},
        },
        "model": {"attention_dropout": 0.1},
        "parallel": {"expert": 2, "tensor": 2},
        "optimizer": {"zero": "data_parallel"},
    },
}


def ranks_of(name: str) -> int:
    """The smallest number of ranks that has all exchanges of a case."""
    parallel = CASES[name]["parallel"]
    return parallel["expert"] * parallel.get("tensor", 1)


def configuration(name: str) -> Config:
    given = CASES[name]
    return config_from_dict(
        {
            "model": {**MODEL, "vocab_size": VOCABULARY, **given.get("model", {})},
            "moe": {"num_experts": 8, "num_groups": 2, **given["moe"]},
            # An epsilon above the rounding of gradients: else Adam makes a full step of it where a gradient is zero.
            "optimizer": {
                "learning_rate": 0.01,
                "warmup_steps": 1,
                "epsilon": 1e-4,
                "expert_epsilon": 1e-4,
                **given.get("optimizer", {}),
            },
            "train": {"steps": STEPS, "global_batch_size": 8, **given.get("train", {})},
            "parallel": {"ranks_per_node": ranks_of(name) // NODES, **given["parallel"]},
            "runtime": {"device": "cpu", **given.get("runtime", {})},
        }
    )


def train(config: Config, job: Runtime, mode: str) -> Dict[str, np.ndarray]:
    """What a run of some steps leaves, see the head of this file."""
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    parallel = config.parallel
    topology = Topology(job.world_size, parallel.ranks_per_node, parallel.expert, parallel.tensor)
    backend = "hccl" if mode == "functions" else "tcp"
    collectives = create_collectives(backend, topology, job.rank, job.mesh, eager=mode == "functions")
    words = Vocabulary(VOCABULARY, 2, np.ones((2, VOCABULARY), np.int64))
    engine = TrainEngine(config, dataclasses.replace(job, collectives=collectives), words)
    rows = micro_batch_sequences(config, topology.data)
    batches = [
        of_place(random_batch(rows, config.model.sequence_length, words), job.rank // topology.tensor, number)
        for number in range(micro_batches_per_step(config, topology.data))
    ]
    found, history = {}, []
    for step in range(1, STEPS + 1):
        result = engine.train_step(batches, step, 0.01)
        sums = result.sums
        losses = [float(sums[name]) / float(sums["tokens"]) for name in ("task", "aux", "locality")]
        history.append([*losses, result.grad_norm])
        if step == 1:
            found.update({f"first/{moment.name}": moment.asnumpy().copy() for moment in engine.adam.first})
    found.update({f"last/{parameter.name}": parameter.asnumpy() for parameter in engine.parameters})
    return {"history": np.array(history), **found}


def of_place(batch: Any, place: int, number: int) -> Any:
    """The batch with ids of its own for each data-parallel rank, which is the home of its tokens, and micro-batch."""
    shift = 7 * place + 3 * number
    return batch._replace(
        ids=(batch.ids + shift) % VOCABULARY,
        targets=(batch.targets + shift) % VOCABULARY,
        home=np.full(len(batch.home), place, np.int32),
    )


def main() -> None:
    found: Dict[str, np.ndarray] = {}
    with start_runtime(config_from_dict({"runtime": {"device": "cpu"}})) as job:
        functions = MeshFunctions(job.mesh)
        functions.install()
        for name in [name for name in CASES if ranks_of(name) == job.world_size]:
            for mode in MODES:
                for what, array in train(configuration(name), job, mode).items():
                    found[f"{name}/{mode}/{what}"] = array
            found[f"called/{name}"] = np.array(sorted({operation for operation, *_ in functions.calls}))
            functions.calls.clear()
        job.collectives.barrier()
        np.savez(Path(sys.argv[1]) / f"{job.world_size}_{job.rank}.npz", **found)


if __name__ == "__main__":
    main()
