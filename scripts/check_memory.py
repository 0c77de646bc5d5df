#!/usr/bin/env python3
"""What sharded and hosted optimizer state save, and what asynchronous checkpoints cost, measured on this machine.

usage: python scripts/check_memory.py [--folder DIR] [--only memory|checkpoints] [--steps N]

memory: four ranks that play two nodes train a few steps of configs/quickstart.yaml, wider, with each way to keep
optimizer state; every rank counts the bytes that it holds. Beside them what arithmetic says, and the process's resident
memory. checkpoints: the quickstart's training at its own checkpoint interval (--steps, default: its own number). Its
data must be prepared. Prints a Markdown table for each; exit status 1 if a saving is more than 10 % from arithmetic, or
checkpoints cost 3 % of training or more.
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from pangu_sigma.config.load import load_config
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.job import ITEM, plan_job
from pangu_sigma.planner.parameters import count_parameters

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
RANKS, NODES, STEPS, LIMIT = 4, 2, 3, 3600
WIDER = [
    "model.hidden_size=512",
    "model.num_heads=8",
    "model.dense_layers=2",
    "model.sparse_layers=1",
    "parallel.expert=2",
    "moe.router.type=hash",
    "train.eval_rows=0",
    "train.cosines=false",
]
CASES = {
    "device": [],
    "sharded": ["optimizer.zero=data_parallel"],
    "experts on the host": ["optimizer.expert_state=host_dense"],
    "experts on the host, lazily": ["optimizer.expert_state=host_lazy"],
    "experts on the host, the rest sharded": ["optimizer.expert_state=host_dense", "optimizer.zero=data_parallel"],
}
MB = 1e6


def configuration(case: str) -> Config:
    return load_config(QUICKSTART, [*WIDER, *CASES[case]])


def arithmetic(case: str) -> tuple[float, float]:
    """Bytes of optimizer state in the compiled step, and on the host, of a rank. D dense numbers on D's 4 ranks, E of
    experts, which have two replicas: two moments; with the weights that are being updated three arrays where they are
    shared out, and on the host.
    """
    counts = count_parameters(plan_job(configuration("device"), NODES, RANKS // NODES))
    dense, experts = counts.rank - counts.rank_experts, counts.rank_experts
    hosted, shared = "host" in case, "sharded" in case
    step = (3 * dense / 4 if shared else 2 * dense) + (0 if hosted else 3 * experts / 2 if shared else 2 * experts)
    return ITEM * step, ITEM * 3 * experts if hosted else 0


def worker(case: str, output: Path) -> None:
    """One rank: trains and notes what it holds, in bytes."""
    import numpy as np

    from pangu_sigma.data.dataset import PreparedData
    from pangu_sigma.data.loader import create_loader
    from pangu_sigma.data.vocabulary import vocabulary
    from pangu_sigma.model.capacity_rules import resolve_layout
    from pangu_sigma.runtime.runtime import start_runtime
    from pangu_sigma.train.engine import TrainEngine

    config = configuration(case)
    data = PreparedData.open(config.data.path)
    with start_runtime(config) as runtime:
        loader = create_loader(
            config, data, resolve_layout(config, runtime.topology), runtime.rank, runtime.topology.data
        )
        parts = TrainEngine(config, runtime, vocabulary(config, data))
        for step in range(1, STEPS + 1):
            parts.train_step(loader.step(step - 1), step, 1e-3)
        loader.close()
        held = {parameter.name: parameter.asnumpy().nbytes for parameter in parts.update.get_parameters()}
        state = sum(size for name, size in held.items() if name.startswith(("adam_", "shard")))
        host = [] if parts.host is None else [*parts.host.weights.values(), *parts.host.moments]
        note = {
            "parameters": sum(parameter.asnumpy().nbytes for parameter in parts.parameters),
            "state": state,
            "host": sum(4 * int(np.prod(bank.shape)) for bank in host),
            "resident": resident(),
            "transferred": 0 if parts.host is None else parts.host.transferred / STEPS,
        }
        (output / f"{runtime.rank}.json").write_text(json.dumps(note))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(psutil.Process().memory_info().rss)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(case: str, folder: Path) -> list[dict[str, float]]:
    """Runs the job of a case; what each rank noted."""
    folder.mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GLOG_v": "3",
        "OMP_NUM_THREADS": "1",
        "PANGU_SIGMA_COMPILE_CACHE": "none",  # compiling takes memory, too
        "LOCMOE_MESH_PORT": str(free_port()),
        "LOCMOE_MESH_SECRET": secrets.token_hex(32),
    }
    command = [
        "msrun",
        f"--worker_num={RANKS}",
        f"--local_worker_num={RANKS}",
        "--master_addr=127.0.0.1",
        f"--master_port={free_port()}",
        "--join=True",
        f"--log_dir={folder / 'logs'}",
        "python",
        __file__,
        "--case",
        case,
        "--folder",
        str(folder),
    ]
    subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        env=environment,
        timeout=LIMIT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def check_memory(folder: Path) -> bool:
    """Prints a row a case; whether all savings are as arithmetic says."""
    print(
        "| optimizer state | in the step, MB | saved, MB | by arithmetic | off by | on the host, MB | by arithmetic | "
        "to and from the host a step, MB | resident, MB |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    before, good = {}, True
    for case in CASES:
        found = measure(case, folder / case.replace(" ", "_").replace(",", ""))
        own = {name: max(rank[name] for rank in found) for name in found[0]}
        planned, host = arithmetic(case)
        before = before or {"state": own["state"], "planned": planned}
        saved, expected = before["state"] - own["state"], before["planned"] - planned
        off = saved / expected - 1.0 if expected else 0.0
        good &= abs(off) <= 0.1 and abs(own["host"] - host) <= 0.1 * host
        print(
            f"| {case} | {own['state'] / MB:.1f} | {saved / MB:.1f} | {expected / MB:.1f} | {off:+.2%} | "
            f"{own['host'] / MB:.1f} | {host / MB:.1f} | {own['transferred'] / MB:.1f} | {own['resident'] / MB:.0f} |",
            flush=True,
        )
    return good


def check_checkpoints(folder: Path, steps: "int | None") -> bool:
    """Prints what checkpoints cost the quickstart's training; whether that is under 3 %."""
    overrides = [f"train.output_dir={folder}", *([f"train.steps={steps}"] if steps else [])]
    command = [
        "bash",
        str(ROOT / "scripts" / "train_msrun.sh"),
        "--ranks-per-node",
        str(RANKS),
        QUICKSTART,
        *(word for override in overrides for word in ("--set", override)),
    ]
    subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=LIMIT,
        stdout=subprocess.DEVNULL,
    )
    records: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][
        1:
    ]  # 1 compiles
    summary, interval = (
        json.loads((folder / "summary.json").read_text()),
        load_config(QUICKSTART, []).checkpoint.interval,
    )
    times = {record["progress/step"]: record["time/step(s)"] for record in records}
    usual, stall = median(times.values()), summary["time/checkpoint_stall(s)"]
    # While writing is overlapped with steps, they may take longer.
    slower = sum(times[step] - usual for step in times if step > interval and step % interval in (1, 2))
    share = (stall + max(slower, 0.0)) / (sum(times.values()) + stall)
    print(
        "| steps | checkpoints | training, s | waited for the copy, s | two steps after each, beyond the median, s | "
        "overlapped writing, s | share |\n|---|---|---|---|---|---|---|\n"
        f"| {len(times) + 1} | {(len(times) + 1) // interval} | {sum(times.values()):.1f} | {stall:.2f} | "
        f"{slower:.2f} | {summary['time/checkpoint_writing(s)']:.2f} | {share:.2%} |",
        flush=True,
    )
    return share < 0.03


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "check_memory")
    parser.add_argument("--only", choices=("memory", "checkpoints"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        if os.environ.get("MS_ROLE") != "MS_SCHED":
            worker(options.case, options.folder)
        return 0
    good, now = True, str(time.time_ns())
    if options.only != "checkpoints":
        good &= check_memory(options.folder / now / "memory")
    if options.only != "memory":
        good &= check_checkpoints(options.folder / now / "quickstart", options.steps)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
