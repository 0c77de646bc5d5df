#!/usr/bin/env python3
"""Whether a run that was taken up again is the run that never stopped: 40 steps against 20 and 20, to the bit.

usage: python scripts/check_resume.py [--folder DIR] [--only PART ...]

A case is a router x precision x ranks (1, or 4 with expert parallel 4) on a small model and the text of
configs/two_domains.yaml, which must be prepared. Compared: the losses of steps 21 to 40, and every tensor and number of
the checkpoint of step 40. Prints a Markdown table; exit status 1 if a case differs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import numpy as np

from pangu_sigma.checkpoint.reader import CheckpointReader

ROOT = Path(__file__).resolve().parents[1]
BASE = [
    "model={hidden_size: 32, num_heads: 2, dense_layers: 1, sparse_layers: 1, sequence_length: 128, "
    "hidden_dropout: 0.1}",
    "train={steps: 40, global_batch_size: 8, eval_rows: 0, cosines: false}",
    "checkpoint.interval=20",
    "optimizer.warmup_steps=2",
]
ROUTERS = {
    "hash": [],
    "hash by a gate": ["moe.router.top_k=2", "moe.router.hash.weights=gate"],
    "switch above hash": ["moe.router.balance_rate=0.01", "moe.routers=[{layers: [0], type: hash}]"],
    "switch": ["moe.router.switch.jitter=0.1"],
    "locmoe": ["moe.router.balance_rate=0.01"],
    "locmoe on codes": ["moe.router.locmoe.gate_input=code"],
    "gshard": ["moe.router.top_k=2"],
    "faster_moe": [],
    "ta_moe": ["moe.router.statistics=node"],
    "etr": ["moe.dispatch.drop_priority=weight", "moe.router.etr.expert_choice_start_step=10"],
    "smile": ["moe.router.smile.num_nodes=2"],
    "c2r": ["moe.router.top_k=2"],
    "topk": ["moe.router.top_k=2", "moe.router.topk.score_function=sigmoid", "moe.router.balance.kind=pid"],
    "node_limited": ["moe.router.top_k=2", "moe.router.balance.kind=sign"],
    "moge": ["moe.router.top_k=2", "moe.router.moge.device_groups=2"],
}
PRECISIONS = {"fp32": [], "fp16": ["runtime.loss_scale={initial: 1e8, growth_interval: 7}"]}
LIMIT = 900  # seconds for a run


def cases(only: list[str]) -> Iterator[tuple[str, str, int]]:
    for router in ROUTERS:
        for precision in PRECISIONS:
            for ranks in (1, 4):
                if not only or any(part == router or part == precision for part in only):
                    yield router, precision, ranks


def train(folder: Path, ranks: int, overrides: list[str]) -> None:
    words = [
        word
        for override in [
            *BASE,
            *overrides,
            f"train.output_dir={folder}",
            f"parallel.expert={ranks}",
            f"parallel.ranks_per_node={max(ranks // 2, 1)}",
        ]
        for word in ("--set", override)
    ]
    config = str(ROOT / "configs" / "two_domains.yaml")
    command = (
        [sys.executable, "-m", "pangu_sigma", "train", config, *words]
        if ranks == 1
        else ["bash", str(ROOT / "scripts" / "train_msrun.sh"), "--ranks-per-node", str(ranks), config, *words]
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, check=True, env=environment, timeout=LIMIT, stdout=subprocess.DEVNULL)


def differences(whole: Path, resumed: Path) -> list[str]:
    """What differs between the two runs' second halves."""
    left, right = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, resumed)
    )
    names = ("loss/total", "optim/grad_norm", "optim/loss_scale", "moe/tokens_per_expert")
    found = [
        f"step {a['progress/step']}: {name}"
        for a, b in zip(left[20:], right, strict=True)
        for name in names
        if a.get(name) != b.get(name)  # a loss scale with fp16 only
    ]
    readers = [CheckpointReader.open(folder / "checkpoints" / "step_40") for folder in (whole, resumed)]
    with readers[0] as one, readers[1] as other:
        found += [] if one.header.scalars == other.header.scalars else ["numbers"]
        found += [name for name in one.names() if not np.array_equal(one.read(name), other.read(name), equal_nan=True)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "check_resume")
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    failed = False
    print("| router | precision | ranks | 20 + 20 steps against 40 |\n|---|---|---|---|", flush=True)
    for router, precision, ranks in cases(options.only):
        overrides = [
            f"moe.router.type={router.split()[0]}",
            f"runtime.precision={precision}",
            *ROUTERS[router],
            *PRECISIONS[precision],
        ]
        folder = options.folder / f"{router}_{precision}_{ranks}_{time.time_ns()}".replace(" ", "_")
        train(folder / "whole", ranks, overrides)
        train(
            folder / "resumed", ranks, [*overrides, f"checkpoint.resume={folder / 'whole' / 'checkpoints' / 'step_20'}"]
        )
        found = differences(folder / "whole", folder / "resumed")
        failed |= bool(found)
        result = "equal to the bit" if not found else f"differs: {', '.join(found[:3])}"
        print(f"| {router} | {precision} | {ranks} | {result} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
