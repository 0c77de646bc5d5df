"""One rank of the sharding job: the same steps with optimizer state whole and shared out, each going on from the
other's checkpoints.

usage: sharding_worker.py DATA OUTPUT      (under msrun, four workers that play two nodes)

Leaves `history_NAME_RANK.npy`, one row of losses and gradient norm a step, `held_NAME_RANK.npy`, numbers of optimizer
state in the compiled step and of experts' state on the host, and checkpoints in OUTPUT/NAME/checkpoints.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_worker import Run, configuration

from pangu_sigma.config.load import config_from_dict, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.runtime.runtime import start_runtime

STEPS, MORE = 3, 5


def sharded(data: str, output: Path, tensor: int = 1, **optimizer: Any) -> Config:
    """Expert parallel 2: two replicas of the experts, one on each node; with tensor parallelism one replica. As little
    to compile as will do.
    """
    given = to_dict(configuration(data, output, 2, tensor))
    given["model"].update(dense_layers=0, attention_dropout=0.0, domain_embeddings=False)
    given["moe"]["router"].update(type="hash", balance_rate=0.0)
    given["optimizer"].update(
        clip_norm=None, **optimizer
    )  # a norm that is summed in another order would clip to other bits
    return config_from_dict(given)


def main() -> None:
    data_path, output = sys.argv[1], Path(sys.argv[2])
    data = PreparedData.open(data_path)
    with start_runtime(configuration(data_path, output / "whole")) as job:

        def run(name: str, *tensor: int, **optimizer: str) -> Run:
            return Run(job, data, sharded(data_path, output / name, *tensor, **optimizer))

        def train(run: Run, name: str, start: int, end: int) -> None:
            np.save(output / f"history_{name}_{start}_{job.rank}.npy", np.array(run.train(start, end)))

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
        for name, of in (("whole", whole), ("shared", shared), ("other", other)):
            own = sum(p.size for p in of.parts.update.get_parameters() if p.name.startswith(("adam_", "shard.")))
            host = sum(np.prod(bank.shape) for bank in of.parts.host.moments) if of.parts.host else 0
            np.save(output / f"held_{name}_{job.rank}.npy", np.array([own, host]))


if __name__ == "__main__" and os.environ.get("MS_ROLE") != "MS_SCHED":
    main()
