"""One rank of the traffic job: trains a few steps of each case and leaves the bytes of the last step, summed over
ranks, by cause.

usage: traffic_worker.py OUTPUT CASES   (under msrun)    CASES: JSON, name -> configuration as nested mappings
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.metrics import CAUSES, CounterClock, sum_counters

STEPS = 2


def measure(config: Config, job: Runtime, name: str) -> dict:
    """Bytes (inside nodes, between nodes) of step STEPS, of everything and of each cause."""
    parallel = config.parallel
    topology = Topology(job.world_size, parallel.ranks_per_node, parallel.expert, parallel.tensor)
    runtime = dataclasses.replace(job, collectives=create_collectives("tcp", topology, job.rank, job.mesh))
    words = Vocabulary(config.model.vocab_size, config.moe.num_groups, np.ones(config.model.vocab_size, np.int64))
    parts = TrainEngine(config, runtime, words)
    rows = config.train.micro_batch_size or config.train.global_batch_size // topology.data
    micro_batches = config.train.global_batch_size // (rows * topology.data)
    batch = random_batch(rows, config.model.sequence_length, words)
    home = runtime.rank // topology.tensor if config.moe.layout is None else 0
    batches = [batch._replace(home=np.full(rows, home, np.int32))] * micro_batches
    clock = CounterClock(runtime.collectives)
    for step in range(1, STEPS + 1):
        clock.restart()
        parts.train_step(batches, step, 1e-3)
    total = sum_counters(HostSum(runtime.collectives, f"metrics/{name}"), clock.elapsed(1.0))
    return {
        cause: [int(getattr(total, cause).intra_node_bytes), int(getattr(total, cause).inter_node_bytes)]
        for cause in ("total", *CAUSES)
    }


def main() -> None:
    output, cases = sys.argv[1:]
    given = json.loads(Path(cases).read_text())
    first = config_from_dict(next(iter(given.values())))
    with start_runtime(first) as job:
        for name, raw in given.items():
            found = measure(config_from_dict(raw), job, name)
            if job.rank == 0:
                with open(output, "a") as file:
                    file.write(json.dumps([name, found]) + "\n")


if __name__ == "__main__" and os.environ.get("MS_ROLE") != "MS_SCHED":
    main()
