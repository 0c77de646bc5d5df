"""One rank of the checkpoint job: a run of four ranks is saved half-way, and goes on at several layouts.

usage: checkpoint_worker.py DATA OUTPUT      (under msrun, four workers)

Leaves `history_NAME_RANK.npy` (losses of the second half, one row a step), and checkpoints in OUTPUT/NAME/checkpoints.
"""

import dataclasses
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, List, Optional

import numpy as np

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.header import training_header
from pangu_sigma.checkpoint.resume import CheckpointLoader, ResumeSource, find_source
from pangu_sigma.checkpoint.state import local_tensors, rank_location, writing_ranks
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.data.vocabulary import vocabulary
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.schedule import learning_rate

HALF, STEPS = 20, 40


def configuration(
    data: str, output: Path, expert: int = 4, tensor: int = 1, placement: str = "interleaved", **checkpoint: Any
) -> Config:
    """As in the parity job: homes of a given cluster, slots for every token, an epsilon above the rounding of
    gradients.
    """
    return config_from_dict(
        {
            "model": {
                "hidden_size": 32,
                "num_heads": 2,
                "dense_layers": 1,
                "sparse_layers": 1,
                "sequence_length": 32,
                "attention_dropout": 0.1,
                "domain_embeddings": True,
            },
            "moe": {
                "num_experts": 8,
                "num_groups": 2,
                "layout": {"world_size": 4, "ranks_per_node": 2, "expert": 4},
                "placement": placement,
                "capacity": {"factor": 8.0},
                "router": {"type": "locmoe", "statistics": "node", "balance_rate": 0.01, "locmoe": {"gate": "dense"}},
            },
            "parallel": {"expert": expert, "tensor": tensor},
            "data": {"path": data},
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 5, "epsilon": 1e-4, "expert_epsilon": 1e-4},
            "train": {"steps": STEPS, "global_batch_size": 8, "eval_rows": 0, "output_dir": str(output)},
            "checkpoint": {"interval": HALF, **checkpoint},
        }
    )


class Run:
    """A run of the job at one layout."""

    def __init__(self, job: Runtime, data: PreparedData, config: Config) -> None:
        topology = Topology(job.world_size, 2, config.parallel.expert, config.parallel.tensor)
        self.runtime = dataclasses.replace(job, collectives=create_collectives("tcp", topology, job.rank, job.mesh))
        self.config, self.data = config, data
        self.parts = TrainEngine(config, self.runtime, vocabulary(config, data))
        self.place = rank_location(config, self.runtime)
        self.root = Path(config.train.output_dir) / "checkpoints"

    def restore(self, path: Optional[Path] = None) -> int:
        """From a given checkpoint, or as `checkpoint.resume: auto` does. Returns the steps done."""
        loader = CheckpointLoader(self.config, self.runtime, self.data, self.parts)
        source = ResumeSource([path]) if path is not None else find_source(self.config, self.data)
        return loader.load(source).step

    def save(self, step: int) -> None:
        self.train(step, step)

    def train(self, start: int, end: int) -> List[List[float]]:
        """Steps after `start` up to `end`, which is saved; what is half-way too."""
        topology, history = self.runtime.topology, []
        layout = resolve_layout(self.config, topology)
        job = WritingJob(self.runtime.rank, writing_ranks(topology), 60.0, self.runtime.collectives.barrier)
        loader = create_loader(self.config, self.data, layout, self.runtime.rank // topology.tensor, topology.data)
        with closing(loader), CheckpointWriter(self.root, job, Retention(9)) as writer:
            for step in range(start, end + 1):
                if step > start:
                    rate = learning_rate(self.config.optimizer, STEPS, step)
                    result = self.parts.train_step(loader.step(step - 1), step, rate)
                    sums = result.sums
                    history.append(
                        [
                            *(float(sums[name]) / float(sums["tokens"]) for name in ("task", "aux", "locality")),
                            result.grad_norm,
                        ]
                    )
                if step in (HALF, end):
                    state = self.parts.saved_state()
                    header = training_header(self.config, layout, self.data, self.parts.words.vocab_size, step, state)
                    writer.save(header, local_tensors(state, self.place))
        self.runtime.collectives.barrier()  # the first rank has published
        return history


def second_half(run: Run, output: Path, name: str, source: Path) -> None:
    """Goes on from `source`, which it also saves as it has it."""
    assert run.restore(source) == HALF
    np.save(output / f"history_{name}_{run.runtime.rank}.npy", np.array(run.train(HALF, STEPS)))


def main() -> None:
    data_path, output = sys.argv[1], Path(sys.argv[2])
    data = PreparedData.open(data_path)
    with start_runtime(configuration(data_path, output / "straight")) as job:

        def run(name: str, *layout: Any, **checkpoint: Any) -> Run:
            return Run(job, data, configuration(data_path, output / name, *layout, **checkpoint))

        straight = run("straight")
        np.save(output / f"history_straight_{job.rank}.npy", np.array(straight.train(0, STEPS))[HALF:])
        half = straight.root / f"step_{HALF}"
        # As compiled already: that a process of its own resumes to the bit is in tests/end_to_end/test_checkpoints.py.
        straight.root = output / "resumed" / "checkpoints"
        second_half(straight, output, "resumed", half)
        second_half(run("2x2", 2, 2), output, "2x2", half)
        second_half(
            run("1x1", 1, 1), output, "1x1", output / "2x2" / "checkpoints" / half.name
        )  # what 2 x 2 ranks wrote
        back = run("back", 4, 1, "node_grouped")
        back.restore(output / "1x1" / "checkpoints" / half.name)
        back.save(HALF)
        if job.rank == 0:
            shutil.copytree(output / "straight", output / "damaged")
            spoil(output / "damaged" / "checkpoints" / f"step_{STEPS}" / "experts_3_0.safetensors")
        straight.runtime.collectives.barrier()
        found = run("damaged", resume="auto").restore()
        (output / f"agreed_{job.rank}").write_text(str(found))


def spoil(path: Path) -> None:
    """A bit of what the last rank alone reads."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


if __name__ == "__main__" and os.environ.get("MS_ROLE") != "MS_SCHED":
    main()
