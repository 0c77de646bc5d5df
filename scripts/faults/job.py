"""The small training job that faults are tried on, and what is looked at afterwards: losses, checkpoints, processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
import psutil
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import finished
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.data.prepare import prepare

from .page import ROOT

INTERVAL = 2  # steps between checkpoints
LONGEST = {1: 8, 2: 64}  # steps of a job of so many ranks
LIMIT = 1800  # seconds for a job that nothing happens to; compiling on slow cores is most of it
# Deadlines are so long that only a part which is about them reaches one: the machine may stop for others meanwhile.
SETTINGS = {
    "model": {
        "hidden_size": 32,
        "num_heads": 2,
        "dense_layers": 0,
        "sparse_layers": 1,
        "sequence_length": 32,
        "hidden_dropout": 0.1,
    },
    "moe": {"num_experts": 4, "num_groups": 2, "router": {"type": "switch", "switch": {"jitter": 0.1}}},
    "optimizer": {"schedule": "constant", "learning_rate": 0.01},
    "train": {"global_batch_size": 4, "eval_rows": 0, "log_interval": 50, "cosines": False},
    "checkpoint": {"interval": INTERVAL},
    "runtime": {"join_timeout": 7200, "collective_timeout": 7200},
}
MEASURES = ("loss/total", "optim/grad_norm", "moe/tokens_per_expert")


def make_config(folder: Path) -> Path:
    """The job's configuration, and prepared data of made-up words in two domains, which are made once."""
    path, data = folder / "config.yaml", folder / "data"
    sources = {domain: str(folder / domain) for domain in ("one", "two")}
    prepared = {"path": str(data), "prepare": {"sources": sources, "vocab_size": 320, "validation_fraction": 0.1}}
    settings = {**SETTINGS, "data": prepared}
    if not data.exists():
        generator = np.random.default_rng(0)
        words = np.array(["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(120)])
        for source in sources.values():
            Path(source).mkdir(parents=True, exist_ok=True)
            for number in range(12):
                (Path(source) / f"{number}.txt").write_text(" ".join(generator.choice(words, 400)))
        prepare(config_from_dict(settings))
    path.write_text(yaml.safe_dump(settings))
    return path


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "LOCMOE_", "RANK_"))}
    return {
        "PANGU_SIGMA_COMPILE_CACHE": "none",  # jobs are killed while they compile, too
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **more,
    }


def words(config: Path, run: Path, ranks: int, steps: int, *overrides: str) -> list[str]:
    """Arguments of `train` and of the launchers: the configuration, where to, how long."""
    settings = [
        f"train.output_dir={run}",
        f"train.steps={steps}",
        f"parallel.expert={ranks}",
        "parallel.ranks_per_node=1",
        *overrides,
    ]
    return [str(config), *(word for setting in settings for word in ("--set", setting))]


def command(script: str, ranks: int, arguments: Sequence[str], *options: str) -> list[str]:
    """A launcher with so many workers."""
    return ["bash", str(ROOT / "scripts" / script), *options, "--ranks-per-node", str(ranks), *arguments]


def alone(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pangu_sigma", "train", *arguments]


def read_losses(run: Path) -> dict[int, list[object]]:
    """What is compared, by step."""
    path, found = run / "metrics.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # it is being written
            break
        found[record["progress/step"]] = [record[name] for name in MEASURES]
    return found


def newest_step(run: Path) -> int:
    return max(read_losses(run), default=0)


def reference(folder: Path, ranks: int, steps: int) -> dict[int, list[object]]:
    """Losses of a run that nothing happens to; a run that is there already serves, if it is long enough."""
    run, steps = folder / f"undisturbed_{ranks}", max(steps, LONGEST[ranks])
    if max(read_losses(run), default=0) < steps:
        arguments = words(make_config(folder), run, ranks, steps, "checkpoint.resume=auto", "checkpoint.interval=0")
        started = alone(arguments) if ranks == 1 else command("train_msrun.sh", ranks, arguments)
        subprocess.run(started, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return read_losses(run)


def differing_step(run: Path, expected: dict[int, list[object]], steps: int) -> Optional[int]:
    """The first of `steps` steps whose losses are not those of the undisturbed run to the bit; None where all are."""
    found = read_losses(run)
    return next((step for step in range(1, steps + 1) if found.get(step) != expected[step]), None)


def whole_steps(run: Path) -> list[int]:
    """Steps of the checkpoints of which every byte is as it was written, oldest first."""
    found = []
    for step, path in finished(run / "checkpoints"):
        try:
            with CheckpointReader.open(path) as reader:
                for _ in reader.verify():
                    pass
            found.append(step)
        except (InputError, OSError):  # damaged, or removed meanwhile as one too many
            pass
    return found


def processes_with(variable: str) -> list[int]:
    """Ids of the running processes whose environment has `NAME=value`."""
    name, _, value = variable.partition("=")
    running = psutil.process_iter(["environ", "status"])  # None for what may not be read
    found = [one for one in running if one.info["status"] != psutil.STATUS_ZOMBIE]
    return [one.pid for one in found if (one.info["environ"] or {}).get(name) == value]
