"""One rank of the parity job: the same global batches at several parallel degrees, for each router, everything saved.

usage: parity_worker.py DATA OUTPUT DEGREE [DEGREE ...]      (under msrun, or alone with degree 1x1)

A degree is EXPERTxTENSOR. A job with tensor parallelism leaves checkpoints, which the process alone reads.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Dict, Sequence

import numpy as np

from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.checkpoint.header import training_header
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.state import (
    RankLocation,
    StateEntry,
    local_tensors,
    parameter_entries,
    read_values,
    set_values,
    writing_ranks,
)
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.config.load import config_from_dict, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.data.vocabulary import vocabulary
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.schedule import learning_rate

STEPS = 20
# Expert parallelism alone, with replicas of the experts, and with tensor parallelism; losses over ranks and over nodes.
# Every router on four ranks, gradients included, is in tests/numerics; LocMoE at 4 x 1 is in test_checkpoints.py.
ROUTERS = {
    "1x1": ("switch", "locmoe"),
    "4x1": ("switch",),
    "2x1": ("locmoe",),
    "2x2": ("locmoe",),
}
ADAPTIVE_DEGREES = ("1x1", "4x1")
MICRO_BATCHES = 3


def configuration(data: str, router: str, expert: int = 1, tensor: int = 1) -> Config:
    """A network small enough to compile in seconds; slots for every token, so that nothing is dropped."""
    statistics = {"hash": "global", "switch": "rank", "locmoe": "node"}[router]
    return config_from_dict(
        {
            "model": {
                "hidden_size": 32,
                "num_heads": 2,
                "dense_layers": 1,
                "sparse_layers": 1,
                "sequence_length": 32,
                "attention_dropout": 0.1,
                "domain_embeddings": router == "locmoe",
            },
            "moe": {
                "num_experts": 8,
                "num_groups": 2,
                "layout": {"world_size": 4, "ranks_per_node": 2, "expert": 4},
                "capacity": {"factor": 8.0},
                "dispatch": {"group_wise": tensor > 1 and router == "locmoe"},
                "router": {"type": router, "statistics": statistics, "locmoe": {"locality_loss_weight": 0.1}},
            },
            "parallel": {"expert": expert, "tensor": tensor},
            "data": {"path": data},
            # Adam divides a gradient by its own size: where it passes through 0, rounding would become a full step. An
            # epsilon above the rounding of gradients (1e-7 of 0.1) keeps the 20 steps a continuous function of what is
            # compared.
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 5, "epsilon": 1e-4, "expert_epsilon": 1e-4},
            "train": {"steps": STEPS, "global_batch_size": 8, "eval_rows": 0},
        }
    )


def adaptive(data: str, expert: int) -> Config:
    """Slots by the bound, measured before the first and the fourth step; two tiers where there are two nodes."""
    given = to_dict(configuration(data, "locmoe", expert))
    given["model"].update(dense_layers=0, attention_dropout=0.0)
    given["moe"]["capacity"] = {"mode": "adaptive", "interval": 3, "buckets": 32, "hysteresis": 0.0}
    given["moe"]["dispatch"]["type"] = "hierarchical"
    given["train"]["steps"] = 4
    given["optimizer"].update(warmup_steps=1, learning_rate=0.05)
    return config_from_dict(given)


def dense(data: str, overlap: bool) -> Config:
    """Without sparse layers: gradients are all that ranks exchange."""
    given = to_dict(configuration(data, "hash"))
    given["model"].update(sparse_layers=0)
    given["parallel"]["overlap_gradients"] = overlap
    given["train"].update(steps=3, global_batch_size=8 * MICRO_BATCHES, micro_batch_size=2)
    return config_from_dict(given)


def run(config: Config, runtime: Runtime, data: PreparedData, checkpoints: Path) -> dict:
    """Losses of every step, gradients of the first (from Adam's first moments), and the parameters after the last."""
    topology = runtime.topology
    loader = create_loader(
        config, data, resolve_layout(config, topology), runtime.rank // topology.tensor, topology.data
    )
    parts = TrainEngine(config, runtime, vocabulary(config, data))
    placement = ExpertPlacement(8, 2, topology.expert, "interleaved")
    experts = placement.local_experts(topology.ep_index(runtime.rank))
    saved, history = {}, []
    steps, rows = config.train.steps, config.train.global_batch_size // topology.data
    for step in range(1, steps + 1):
        parts.capacity.prepare(step, loader.step)
        result = parts.train_step(loader.step(step - 1), step, learning_rate(config.optimizer, steps, step))
        sums = result.sums
        history.append(
            [
                *(float(sums[name]) / float(sums["tokens"]) for name in ("task", "aux", "locality")),
                result.grad_norm,
                float(sums["kept"].sum()),
                parts.capacity.metrics().get("moe/capacity_slots", 0) / rows,
            ]
        )
        if step == 1:
            clip = min(1.0, config.optimizer.clip_norm / result.grad_norm)
            for name, moment in whole_values(parameter_entries(parts.adam.first), runtime.collectives).items():
                _save(
                    saved, name.replace("adam_m.", "gradient/"), moment / (1 - config.optimizer.beta1) / clip, experts
                )
    for name, value in whole_values(parameter_entries(parts.parameters), runtime.collectives).items():
        _save(saved, f"parameter/{name}", value, experts)
    loader.close()
    if topology.tensor > 1:
        write_and_read(config, runtime, data, parts, experts, checkpoints, saved)
    elif (checkpoints / f"step_{STEPS}").exists():  # of the job with tensor parallelism
        read_back(checkpoints, parts, experts)
        for name, value in whole_values(parts.state(), runtime.collectives).items():
            _save(saved, f"state/{name}", value, experts)
    return {**saved, "history": np.array(history)}


def write_and_read(
    config: Config,
    runtime: Runtime,
    data: PreparedData,
    parts: TrainEngine,
    experts: tuple,
    checkpoints: Path,
    saved: dict,
) -> None:
    """Saves the whole state in a checkpoint and beside it, and reads the checkpoint back into spoilt parameters."""
    state = parts.state()
    for name, value in whole_values(state, runtime.collectives).items():
        _save(saved, f"state/{name}", value, experts)
    before = [entry.get().copy() for entry in state]
    topology, barrier = runtime.topology, runtime.collectives.barrier
    with CheckpointWriter(
        checkpoints, WritingJob(runtime.rank, writing_ranks(topology), 60.0, barrier), Retention()
    ) as writer:
        header = training_header(config, resolve_layout(config, topology), data, parts.words.vocab_size, STEPS, state)
        writer.save(header, local_tensors(state, RankLocation(topology, runtime.rank, experts)))
    barrier()  # the first rank has published
    for entry in state:
        entry.set(np.zeros_like(entry.get()))
    read_back(checkpoints, parts, experts)
    for entry, value in zip(state, before):
        np.testing.assert_array_equal(entry.get(), value, err_msg=entry.name)


def read_back(checkpoints: Path, parts: TrainEngine, experts: tuple) -> None:
    with CheckpointReader.open(checkpoints / f"step_{STEPS}") as reader:
        set_values(read_values(reader, parts.state(), experts))


def whole_values(state: Sequence[StateEntry], collectives: Collectives) -> Dict[str, np.ndarray]:
    """Every entry's value by name, as without tensor parallelism. All ranks of a `tp` group must call it together."""
    values = {entry.name: entry.get() for entry in state if entry.shard is None}
    cut = [(entry, entry.shard) for entry in state if entry.shard is not None]
    if cut:
        own = np.concatenate([entry.get().reshape(1, -1) for entry, _ in cut], 1)  # one message, one small graph
        of_all, start = collectives.all_gather("tp", "test/parts")(Tensor(own)).asnumpy(), 0
        for entry, shard in cut:
            size = int(np.prod(entry.shape))
            values[entry.name] = shard.join([part.reshape(entry.shape) for part in of_all[:, start : start + size]])
            start += size
    return values


def _save(saved: dict, name: str, value: np.ndarray, experts: tuple) -> None:
    if ".experts." not in name:
        saved[name] = value
        return
    for index, expert in enumerate(experts):
        saved[f"{name}@{expert}"] = value[index]


def main() -> None:
    data_path, output, *degrees = sys.argv[1:]
    data = PreparedData.open(data_path)
    with start_runtime(configuration(data_path, "hash")) as job:
        for degree in degrees:
            expert, tensor = map(int, degree.split("x"))
            topology = Topology(job.world_size, min(2, job.world_size), expert, tensor)
            backend = "local" if job.world_size == 1 else "tcp"
            runtime = dataclasses.replace(job, collectives=create_collectives(backend, topology, job.rank, job.mesh))
            for router in ROUTERS[degree]:
                found = run(configuration(data_path, router, expert, tensor), runtime, data, Path(output) / router)
                np.savez(Path(output) / f"{router}_w{job.world_size}_{degree}_rank{job.rank}.npz", **found)
            if degree in ADAPTIVE_DEGREES:
                found = run(adaptive(data_path, expert), runtime, data, Path(output) / "adaptive")
                np.savez(Path(output) / f"adaptive_w{job.world_size}_{degree}_rank{job.rank}.npz", **found)
        if job.world_size > 1:
            runtime = dataclasses.replace(
                job, collectives=create_collectives("tcp", Topology(job.world_size, 2), job.rank, job.mesh)
            )
            for overlap in (True, False):
                found = run(dense(data_path, overlap), runtime, data, Path(output) / "dense")
                np.savez(Path(output) / f"dense_w{job.world_size}_{overlap}_rank{job.rank}.npz", **found)


if __name__ == "__main__" and os.environ.get("MS_ROLE") != "MS_SCHED":
    main()
