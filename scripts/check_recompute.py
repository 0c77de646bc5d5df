#!/usr/bin/env python3
"""What `train.recompute` saves on this machine, versus what `pangu-sigma plan` says.

usage: python scripts/check_recompute.py [--cases CASE ...] [--set KEY=VALUE ...]

One process trains a few steps on random tokens with each value of the key, and tells the most memory that tensors took
in MindSpore's pool, by the pool's own count (the process's memory says nothing: the pool takes a gigabyte at a time),
and the median step. Prints a Markdown table; exit status 1 if memory falls by 10 % more or less than planned. Run it on
a machine that does nothing else.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from pangu_sigma.config.derived import recomputed_parts
from pangu_sigma.config.load import config_from_dict, load_config, save_config
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.cluster import cluster_of
from pangu_sigma.planner.job import ITEM
from pangu_sigma.planner.plan import JobPlan, make_plan

ROOT = Path(__file__).resolve().parents[1]
STEPS, IGNORED, LIMIT = 5, 2, 1800  # the first steps compile, and kernels tune themselves
SIZES = {  # many tokens of a narrow network: little but what layers keep
    "model": {
        "hidden_size": 64,
        "num_heads": 4,
        "ffn_hidden_size": 512,
        "dense_layers": 6,
        "sparse_layers": 1,
        "sequence_length": 32,
        "vocab_size": 200,
        "activation": "fast_gelu",
    },
    "moe": {"num_experts": 4, "router": {"type": "switch"}},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": STEPS, "global_batch_size": 512},
    "runtime": {"device": "cpu", "compile_cache": "none"},
}
CASES = ("none", "attention", "sparse", "4", "all")
PEAK = re.compile(r"Common mem pool info:.*?peak used mem:(\d+)M")
MB = 1e6


def worker(path: str) -> None:
    """Trains as the file says, and prints the median step in seconds."""
    import numpy as np

    from pangu_sigma.bench.step import random_batch
    from pangu_sigma.data.vocabulary import Vocabulary
    from pangu_sigma.runtime.runtime import start_runtime
    from pangu_sigma.train.engine import TrainEngine

    config = load_config(path)
    size = config.model.vocab_size or 0
    words = Vocabulary(size, 1, np.ones(size, np.int64))
    batch = random_batch(config.train.global_batch_size, config.model.sequence_length, words)
    with start_runtime(config) as runtime:
        engine = TrainEngine(config, runtime, words)
        seconds = []
        for step in range(1, STEPS + 1):
            begin = time.monotonic()
            engine.train_step([batch], step, 1e-4)
            seconds.append(time.monotonic() - begin)
    print(json.dumps(median(seconds[IGNORED:])))


def measure(config: Config, folder: Path) -> dict[str, float]:
    """Bytes and seconds of `worker` in a process of its own, whose configuration goes into `folder`."""
    path = folder / f"{config.train.recompute}.yaml"
    save_config(config, path)
    done = subprocess.run(
        [sys.executable, __file__, "--worker", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MS_SUBMODULE_LOG_v": "{PRE_ACT:1}"},  # the pool's own account
        check=True,
        timeout=LIMIT,
        capture_output=True,
        text=True,
    )
    peaks = [int(found) for found in PEAK.findall(done.stderr + done.stdout)]
    seconds = next(line for line in reversed(done.stdout.splitlines()) if re.fullmatch(r"[0-9.]+", line))
    return {"bytes": max(peaks) * 2.0**20, "seconds": float(seconds)}


def held(plan: JobPlan) -> float:
    """Bytes of what layers keep at most, without what the process holds besides, by the fit of check_planner.py.

    The plan has two tensors of inner features a layer, as a device's operator for the activation keeps. On CPU
    fast_gelu is x * sigmoid(1.702 x), which keeps a third one, in every layer that keeps any, or in the one that is
    computed anew.
    """
    job = plan.job
    keeping = sum(part != "all" for part in recomputed_parts(job.config))
    third = ITEM * job.tokens * job.inner * max(1, keeping)
    return plan.memory.activations / plan.hardware.memory.activation_factor.value + third


def check(config: Config, folder: Path, cases: list[Any]) -> bool:
    """Prints a row a case; whether memory falls as planned."""
    print(
        "| `train.recompute` | tensors, MB | less by | planned | off by | step, s | longer by | planned |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    good, first = True, None
    for case in cases:
        chosen = replace(config, train=replace(config.train, recompute=int(case) if case.isdigit() else case))
        plan, found = make_plan(chosen, cluster_of(chosen, 1, 1, None)), measure(chosen, folder)
        first = first or (plan, found)
        fall, planned = first[1]["bytes"] - found["bytes"], held(first[0]) - held(plan)
        off = planned / fall - 1.0 if fall else 0.0
        good &= abs(off) <= 0.1
        print(
            f"| {case} | {found['bytes'] / MB:.0f} | {fall / MB:.0f} | {planned / MB:.0f} | {off:+.1%} | "
            f"{found['seconds']:.3f} | {found['seconds'] / first[1]['seconds'] - 1:+.1%} | "
            f"{plan.time.total / first[0].time.total - 1:+.1%} |",
            flush=True,
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "check_recompute", help="for configurations")
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="values of the key, none first")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another size")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    save_config(config_from_dict(SIZES), options.folder / "base.yaml")
    return 0 if check(load_config(options.folder / "base.yaml", options.set), options.folder, options.cases) else 1


if __name__ == "__main__":
    sys.exit(main())
