"""One rank of the parity job: the same global batches at several parallel degrees, for each router, everything saved.

usage: parity_worker.py DATA OUTPUT DEGREE [DEGREE ...]      (under msrun, or alone with degree 1)
"""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np

from locmoe_ops.collectives import create_collectives
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.config import Config, config_from_dict
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.model.sparse import resolve_layout
from pangu_sigma.train.build import TrainingParts, vocabulary
from pangu_sigma.train.runtime import Runtime, start_runtime
from pangu_sigma.train.schedule import learning_rate

STEPS = 20
ROUTERS = ("hash", "switch", "locmoe")


def configuration(data: str, router: str, degree: int, statistics: str) -> Config:
    """A network small enough to compile in seconds; slots for every token, so that nothing is dropped."""
    return config_from_dict({
        "model": {"hidden_size": 32, "num_heads": 2, "dense_layers": 1, "sparse_layers": 1, "sequence_length": 32},
        "moe": {"num_experts": 8, "num_groups": 2, "layout": {"world_size": 4, "ranks_per_node": 2, "expert": 4},
                "capacity": {"factor": 8.0},
                "router": {"type": router, "statistics": statistics, "locmoe": {"locality_loss_weight": 0.1}}},
        "parallel": {"expert": degree},
        "data": {"path": data},
        # Adam divides a gradient by its own size: where it passes through 0, rounding would become a full step. An epsilon
        # above the rounding of gradients (1e-7 of 0.1) keeps the 20 steps a continuous function of what is compared.
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 5, "epsilon": 1e-4, "expert_epsilon": 1e-4},
        "train": {"steps": STEPS, "global_batch_size": 8, "eval_rows": 0},
    })


def run(config: Config, runtime: Runtime, data: PreparedData) -> dict:
    """Losses of every step, gradients of the first (from Adam's first moments), and the parameters after the last."""
    loader = create_loader(config, data, resolve_layout(config, runtime.topology), runtime.rank, runtime.world_size)
    parts = TrainingParts(config, runtime, vocabulary(config, data))
    placement = ExpertPlacement(8, 2, runtime.topology.expert, "interleaved")
    experts = placement.local_experts(runtime.topology.ep_index(runtime.rank))
    saved, history = {}, []
    for step in range(1, STEPS + 1):
        result = parts.train_step(loader.step(step - 1), step, learning_rate(config.optimizer, STEPS, step))
        sums = result.sums
        history.append([*(float(sums[name]) / float(sums["tokens"]) for name in ("task", "aux", "locality")), result.grad_norm,
                        float(sums["kept"].sum())])
        if step == 1:
            clip = min(1.0, config.optimizer.clip_norm / result.grad_norm)
            for parameter, moment in zip(parts.parameters, parts.adam.first):
                _save(saved, f"gradient/{parameter.name}", moment.asnumpy() / (1 - config.optimizer.beta1) / clip, experts)
    for parameter in parts.parameters:
        _save(saved, f"parameter/{parameter.name}", parameter.asnumpy(), experts)
    loader.close()
    return {**saved, "history": np.array(history)}


def _save(saved: dict, name: str, value: np.ndarray, experts: tuple) -> None:
    if ".experts." not in name:
        saved[name] = value
        return
    for index, expert in enumerate(experts):
        saved[f"{name}@{expert}"] = value[index]


def main() -> None:
    data_path, output, *degrees = sys.argv[1:]
    data = PreparedData.open(data_path)
    with start_runtime(configuration(data_path, "hash", 1, "global")) as job:
        for degree in map(int, degrees):
            topology = Topology(job.world_size, min(2, job.world_size), degree)
            backend = "local" if job.world_size == 1 else "tcp"
            runtime = dataclasses.replace(job, collectives=create_collectives(backend, topology, job.rank, job.mesh))
            for router in ROUTERS:
                statistics = {"hash": "global", "switch": "rank", "locmoe": "node"}[router]
                found = run(configuration(data_path, router, degree, statistics), runtime, data)
                np.savez(Path(output) / f"{router}_w{job.world_size}_ep{degree}_rank{job.rank}.npz", **found)


if __name__ == "__main__" and os.environ.get("MS_ROLE") != "MS_SCHED":
    main()
