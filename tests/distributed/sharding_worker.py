"""One rank of the sharding job: the same steps with optimizer state whole and shared out, each resuming from the
other's checkpoints; and a few steps of other configurations, for the bytes that they send.

usage: sharding_worker.py DATA OUTPUT CASES     (under msrun, four workers)    CASES: JSON, name -> configuration

Leaves `history_NAME_START_RANK.npy`, one row of losses and gradient norm a step; `held_NAME_RANK.npy`, numbers of
optimizer state in the compiled step and of experts' state on the host; checkpoints in OUTPUT/NAME/checkpoints; and
`counted.json`, bytes of the last step by name and cause.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
from layouts_worker import Run, configuration

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.config.load import config_from_dict, save_config, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.metrics import CAUSES, CounterClock, sum_counters

STEPS, MORE = 3, 5
Counted = Dict[str, List[int]]  # [inside nodes, between nodes], over all ranks: of everything, and of each cause


def sharded(data: str, output: Path, tensor: int = 1, **optimizer: Any) -> Config:
    """Expert parallel 2: two replicas of the experts, one on each node; with tensor parallelism one replica. As little
    to compile as will do.
    """
    given = to_dict(configuration(data, output, 2, tensor))
    given["model"].update(attention_dropout=0.0)
    given["moe"]["router"].update(type="hash", balance_rate=0.0)
    given["parallel"]["ranks_per_node"] = 2
    given["optimizer"].update(
        clip_norm=None, **optimizer
    )  # a norm that is summed in another order would clip to other bits
    return config_from_dict(given)


def measure(config: Config, job: Runtime) -> Counted:
    """Bytes of the last of two steps of a batch of random tokens."""
    parallel = config.parallel
    topology = Topology(job.world_size, parallel.ranks_per_node, parallel.expert, parallel.tensor)
    runtime = dataclasses.replace(job, collectives=create_collectives("tcp", topology, job.rank, job.mesh))
    words = Vocabulary(config.model.vocab_size, config.moe.num_groups, np.ones(config.model.vocab_size, np.int64))
    parts = TrainEngine(config, runtime, words)
    rows = config.train.micro_batch_size or config.train.global_batch_size // topology.data
    batch = random_batch(rows, config.model.sequence_length, words)
    batches = [batch._replace(home=np.full(rows, runtime.rank // topology.tensor, np.int32))]
    clock = CounterClock(runtime.collectives)
    for step in (1, 2):
        clock.restart()
        parts.train_step(batches * (config.train.global_batch_size // (rows * topology.data)), step, 1e-3)
    return by_cause(runtime, clock.elapsed(1.0))


def by_cause(runtime: Runtime, counters: Any) -> Counted:
    total = sum_counters(HostSum(runtime.collectives, "metrics/counters"), counters)
    parts = {cause: getattr(total, cause) for cause in ("total", *CAUSES)}
    return {cause: [int(part.intra_node_bytes), int(part.inter_node_bytes)] for cause, part in parts.items()}


def main() -> None:
    data_path, output, cases = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    data = PreparedData.open(data_path)
    with start_runtime(configuration(data_path, output / "whole")) as job:

        def run(name: str, *tensor: int, **optimizer: str) -> Run:
            return Run(job, data, sharded(data_path, output / name, *tensor, **optimizer))

        def train(run: Run, name: str, start: int, end: int) -> None:
            np.save(output / f"history_{name}_{start}_{job.rank}.npy", np.array(run.train(start, end))[:, :4])

        whole, shared = run("whole"), run("shared", shard="data_parallel")
        other = run("other", 2, shard="data_parallel", experts="host_dense")
        train(whole, "whole", 0, STEPS)
        train(shared, "shared", 0, STEPS)
        checkpoints = {name: output / name / "checkpoints" / f"step_{STEPS}" for name in ("whole", "shared")}
        whole.restore(checkpoints["shared"])
        shared.restore(checkpoints["whole"])
        train(whole, "whole", STEPS, MORE)
        train(shared, "shared", STEPS, MORE)
        other.restore(checkpoints["shared"])
        other.save(STEPS)
        train(other, "other", STEPS, MORE)
        counted = {}
        for name, of in (("whole", whole), ("shared", shared), ("other", other)):
            own = sum(p.size for p in of.parts.update.get_parameters() if p.name.startswith(("adam_", "shard.")))
            host = sum(np.prod(bank.shape) for bank in of.parts.host.moments) if of.parts.host else 0
            np.save(output / f"held_{name}_{job.rank}.npy", np.array([own, host]))
            counted[name] = by_cause(of.runtime, of.counters)
            save_config(of.config, output / f"{name}.yaml")
        for name, raw in cases.items():
            counted[name] = measure(config_from_dict(raw), job)
        if job.rank == 0:
            (output / "counted.json").write_text(json.dumps(counted))


if __name__ == "__main__" and os.environ.get("MS_ROLE") != "MS_SCHED":
    main()
