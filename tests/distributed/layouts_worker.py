"""One rank of the layouts job: a run of four ranks that is saved half-way and resumes at several layouts; a measured
capacity; and gradients summed early and late.

usage: layouts_worker.py DATA OUTPUT CASES     (as one of four ranks or of two, or alone)
       CASES: JSON, name -> configuration as nested mappings, of which only the bytes that they send are wanted

Leaves `history_NAME_RANK.npy` (see `Run.train`); checkpoints in OUTPUT/NAME/checkpoints; `held_NAME_RANK.npy`, numbers
of optimizer state in the compiled step and of experts' state on the host; `NAME.yaml`; `slots_RANKS_RANK.npy`, slots a
row by the bound; and `counted_RANKS.json`, bytes of the last step by name and cause. Two ranks, of two nodes, make the
runs `early` and `late`; the process alone `alone`; four ranks, of two nodes, the others.

Compilation is what this costs: each graph is there for something that no other shows, and several things share one
where they do not depend on each other.
"""

import dataclasses
import json
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from helpers.merged import merged
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.checkpoint.header import training_header
from pangu_sigma.checkpoint.resume import CheckpointLoader, ResumeSource, find_source
from pangu_sigma.checkpoint.state import local_tensors, rank_location, writing_ranks
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.config.load import config_from_dict, save_config
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.data.vocabulary import Vocabulary, vocabulary
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.metrics import CAUSES, CounterClock, sum_counters
from pangu_sigma.train.schedule import learning_rate

HALF, STEPS = 20, 30
Counted = Dict[str, List[int]]  # [inside nodes, between nodes], over all ranks: of everything, and of each cause


# A network small enough to compile in seconds: homes of a given cluster, slots for every token, so that nothing is
# dropped.
BASE = {
    "model": {
        "hidden_size": 32,
        "num_heads": 2,
        "dense_layers": 0,
        "sparse_layers": 1,
        "sequence_length": 32,
        "attention_dropout": 0.1,
        "domain_embeddings": True,
    },
    "moe": {
        "num_experts": 8,
        "num_groups": 2,
        "shared_experts": 1,
        "logical_topology": {"world_size": 4, "ranks_per_node": 2, "expert": 4},
        "expert_placement": "interleaved",
        "capacity": {"factor": 8.0},
        "router": {
            "type": "locmoe",
            "statistics": "node",
            "balance_rate": 0.01,
            "locmoe": {"gate": "dense", "locality_loss_weight": 0.1},
        },
    },
    # Adam divides a gradient by its own size: where it passes through 0, rounding would become a full step. An epsilon
    # above the rounding of gradients (1e-7 of 0.1) keeps the steps a continuous function of what is compared.
    # A norm that is summed in another order would clip to other bits.
    "optimizer": {
        "learning_rate": 0.01,
        "warmup_steps": 5,
        "epsilon": 1e-4,
        "expert_epsilon": 1e-4,
        "clip_norm": None,
    },
    "train": {"steps": STEPS, "global_batch_size": 8, "eval_rows": 0},
    "checkpoint": {"interval": HALF},
}
# Slots by the bound, almost any number of which is a bucket; two tiers where there are two nodes.
ADAPTIVE = {
    "moe": {
        "capacity": {"factor": 1.25, "mode": "adaptive", "interval": 3, "buckets": 32, "hysteresis": 0.0},
        "dispatch": {"type": "hierarchical"},
        "router": {"balance_rate": 0.0, "locmoe": {"gate": "grap"}},
    }
}
# Without sparse layers gradients are all that ranks exchange: of copies in half precision, and in half precision.
DENSE = {
    "model": {"dense_layers": 1, "sparse_layers": 0},
    "moe": {"router": {"type": "hash", "balance_rate": 0.0}},
    "parallel": {"reduce_precision": "fp16"},
    "optimizer": {"warmup_steps": 1},
    "runtime": {"precision": "fp16", "loss_scale": {"initial": 256.0}},  # no sum in half precision overflows
    "train": {"steps": 3, "global_batch_size": 2 * 2 * 3, "micro_batch_size": 2},  # two ranks, three micro-batches
}


def configuration(data: str, output: Path, expert: int = 4, tensor: int = 1, *changes: Mapping[str, Any]) -> Config:
    """That of `BASE` with changes by section, at expert- and tensor-parallel degrees."""
    given = merged(BASE, {"data": {"path": data}, "train": {"output_dir": str(output)}})
    for change in (*changes, {"parallel": {"expert": expert, "tensor": tensor}}):
        given = merged(given, change)
    return config_from_dict(given)


class Run:
    """A run of the job at one layout."""

    def __init__(self, job: Runtime, data: PreparedData, config: Config) -> None:
        topology = Topology(
            job.world_size, 2 if job.world_size == 4 else 1, config.parallel.expert, config.parallel.tensor
        )
        backend = "local" if job.world_size == 1 else "tcp"
        self.runtime = dataclasses.replace(job, collectives=create_collectives(backend, topology, job.rank, job.mesh))
        self.config, self.data = config, data
        self.parts = TrainEngine(config, self.runtime, vocabulary(config, data))
        self.place = rank_location(config, self.runtime)
        self.root = Path(config.train.output_dir) / "checkpoints"
        self.clock = CounterClock(self.runtime.collectives)

    def restore(self, path: Optional[Path] = None) -> int:
        """From a given checkpoint, or as `checkpoint.resume: auto` does. Returns the steps done."""
        loader = CheckpointLoader(self.config, self.runtime, self.data, self.parts)
        source = ResumeSource([path]) if path is not None else find_source(self.config, self.data)
        return loader.load(source).step

    def save(self, step: int) -> None:
        self.train(step, step)

    def train(self, start: int, end: int) -> List[List[float]]:
        """Steps after `start` up to `end`, which is saved; the first step and what is half-way too.

        Returns, a row a step: task, balancing and locality loss a token, gradient norm, assignments that found a slot.
        """
        config, topology, history = self.config, self.runtime.topology, []
        layout = resolve_layout(config, topology)
        job = WritingJob(self.runtime.rank, writing_ranks(topology), 60.0, self.runtime.collectives.barrier)
        loader = create_loader(config, self.data, layout, self.runtime.rank // topology.tensor, topology.data)
        with closing(loader), CheckpointWriter(self.root, job, Retention(9)) as writer:
            for step in range(start, end + 1):
                if step > start:
                    rate = learning_rate(config.optimizer, config.train.steps, step)
                    self.clock.restart()
                    result = self.parts.train_step(loader.step(step - 1), step, rate)
                    self.counters, sums = self.clock.elapsed(1.0), result.sums
                    history.append(
                        [
                            *(float(sums[name]) / float(sums["tokens"]) for name in ("task", "aux", "locality")),
                            result.grad_norm,
                            float(sums["kept"].sum()),
                        ]
                    )
                if step in (1, HALF, end):
                    state = self.parts.saved_state()
                    header = training_header(config, layout, self.data, self.parts.words.vocab_size, step, state)
                    writer.save(header, local_tensors(state, self.place))
        self.runtime.collectives.barrier()  # the first rank has published
        return history

    def measured_slots(self) -> float:
        """Slots a row by the bound, before the first step."""
        config, topology = self.config, self.runtime.topology
        layout = resolve_layout(config, topology)
        with closing(create_loader(config, self.data, layout, self.runtime.rank, topology.data)) as loader:
            self.parts.capacity.prepare(1, loader.step)
        slots: int = self.parts.capacity.metrics()["moe/capacity_slots"]
        return slots * topology.data / config.train.global_batch_size


def measure(config: Config, job: Runtime) -> Counted:
    """Bytes of the last of two steps of a batch of random tokens."""
    parallel = config.parallel
    topology = Topology(job.world_size, parallel.ranks_per_node, parallel.expert, parallel.tensor)
    runtime = dataclasses.replace(job, collectives=create_collectives("tcp", topology, job.rank, job.mesh))
    words = Vocabulary(config.model.vocab_size, config.moe.num_groups, np.ones(config.model.vocab_size, np.int64))
    parts = TrainEngine(config, runtime, words)
    rows = config.train.global_batch_size // topology.data
    batch = random_batch(rows, config.model.sequence_length, words)
    batch = batch._replace(home=np.full(rows, runtime.rank // topology.tensor, np.int32))
    clock = CounterClock(runtime.collectives)
    for step in (1, 2):
        clock.restart()
        parts.train_step([batch], step, 1e-3)
    return by_cause(runtime, clock.elapsed(1.0))


def by_cause(runtime: Runtime, counters: Any) -> Counted:
    (total,) = sum_counters(HostSum(runtime.collectives, "metrics/counters"), [counters])
    parts = {cause: getattr(total, cause) for cause in ("total", *CAUSES)}
    return {cause: [int(part.intra_node_bytes), int(part.inter_node_bytes)] for cause, part in parts.items()}


class Runs:
    """The job's runs by name, of which each rank saves its history."""

    def __init__(self, job: Runtime, data: PreparedData, data_path: str, output: Path) -> None:
        self.job, self.data, self.data_path, self.output = job, data, data_path, output
        self.counted: Dict[str, Counted] = {}

    def run(self, name: str, expert: int, tensor: int = 1, **changes: Any) -> Run:
        config = configuration(self.data_path, self.output / name, expert, tensor, changes)
        return Run(self.job, self.data, config)

    def train(self, run: Run, name: str, start: int, end: int) -> None:
        np.save(self.output / f"history_{name}_{self.job.rank}.npy", np.array(run.train(start, end)))
        host, state = run.parts.host, run.parts.update.get_parameters()
        own = sum(p.size for p in state if p.name.startswith(("adam_", "shard.")))
        on_host = sum(np.prod(bank.shape) for bank in host.moments) if host else 0
        np.save(self.output / f"held_{name}_{self.job.rank}.npy", np.array([own, on_host]))
        self.counted[name] = by_cause(run.runtime, run.counters)
        if self.job.rank == 0:
            save_config(run.config, self.output / f"{name}.yaml")

    def measure_slots(self) -> None:
        config = configuration(self.data_path, self.output / "adaptive", self.job.world_size, 1, ADAPTIVE)
        slots = Run(self.job, self.data, config).measured_slots()
        np.save(self.output / f"slots_{self.job.world_size}_{self.job.rank}.npy", np.array(slots))

    def alone(self) -> None:
        self.train(self.run("alone", 1), "alone", 0, HALF)
        self.measure_slots()

    def on_two_ranks(self) -> None:
        self.measure_slots()
        for name in ("early", "late"):
            overlap = {"parallel": {"overlap_gradients": name == "early"}}
            config = configuration(self.data_path, self.output / name, 1, 1, DENSE, overlap)
            self.train(Run(self.job, self.data, config), name, 0, 3)

    def on_four_ranks(self) -> None:
        output = self.output

        def resume(run: Run, name: str, source: Path) -> None:
            """Trains the second half from `source`, which it also saves as it has it."""
            assert run.restore(source) == HALF
            self.train(run, name, HALF, STEPS)

        def half_of(name: str) -> Path:
            return output / name / "checkpoints" / f"step_{HALF}"

        straight = self.run("straight", 4)
        self.train(straight, "straight", 0, STEPS)
        # As compiled already: that a process of its own resumes to the bit is in tests/end_to_end/test_checkpoints.py.
        straight.root = output / "resumed" / "checkpoints"
        resume(straight, "resumed", half_of("straight"))
        # Tensor parallelism, state shared out and on the host, tokens in two tiers and shared by tensor ranks.
        split = self.run(
            "2x2",
            2,
            2,
            optimizer={"zero": "data_parallel", "expert_state": "host_dense"},
            moe={"dispatch": {"type": "hierarchical", "group_wise": True}},
        )
        resume(split, "2x2", half_of("straight"))
        # State whole, biases and norms in vectors, layers recomputed: none of which changes a bit.
        resume(self.run("flat", 2, optimizer={"flat": True}, train={"recompute": "all"}), "flat", half_of("2x2"))
        # State shared out over both tiers.
        resume(self.run("shared", 2, optimizer={"zero": "data_parallel"}), "shared", half_of("flat"))
        back = self.run("back", 4, moe={"expert_placement": "node_grouped"})
        back.restore(half_of("shared"))
        back.save(HALF)
        if self.job.rank == 0:
            shutil.copytree(output / "straight", output / "damaged")
            spoil(output / "damaged" / "checkpoints" / f"step_{STEPS}" / "experts_3_0.safetensors")
        straight.runtime.collectives.barrier()
        damaged = self.run("damaged", 4, checkpoint={"resume": "auto"})
        (output / f"agreed_{self.job.rank}").write_text(str(damaged.restore()))


def main() -> None:
    data_path, output, cases = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    data = PreparedData.open(data_path)
    with start_runtime(configuration(data_path, output, 1)) as job:
        runs = Runs(job, data, data_path, output)
        {1: runs.alone, 2: runs.on_two_ranks, 4: runs.on_four_ranks}[job.world_size]()
        if job.world_size == 4:
            runs.counted.update({name: measure(config_from_dict(raw), job) for name, raw in cases.items()})
        if job.rank == 0:
            (output / f"counted_{job.world_size}.json").write_text(json.dumps(runs.counted))


def spoil(path: Path) -> None:
    """A bit of what the last rank alone reads."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


if __name__ == "__main__":
    main()
