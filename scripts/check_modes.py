#!/usr/bin/env python3
"""How fast PyNative mode is beside graph mode on this machine: one process, and several ranks.

usage: python scripts/check_modes.py [--ranks N ...] [--steps N] [--set KEY=VALUE ...]

Each job holds the same network twice, one a mode, and trains them on random tokens in turn, step by step, so that a
busy or slow machine hits both alike. Prints a Markdown table: the first step, which compiles in graph mode, the median
of the others, and the ratio of the two medians. Exit status 1 if losses of the modes differ by more than rounding.
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Dict, List

from pangu_sigma.config.derived import job_topology, micro_batch_sequences, micro_batches_per_step
from pangu_sigma.config.load import config_from_dict, load_config, save_config
from pangu_sigma.config.validate import validate

ROOT = Path(__file__).resolve().parents[1]
IGNORED, LIMIT = 3, 1800  # steps in which kernels tune themselves, the first included; seconds of a job
MODES = ("graph", "pynative")
ROUNDING = 1e-4  # of losses, after some steps: float32, other fusions
SHAPE = {"num_heads": 4, "dense_layers": 2, "sparse_layers": 2, "vocab_size": 2000}
SIZES: Dict[str, Dict[str, Any]] = {
    "narrow": {"model": {**SHAPE, "hidden_size": 64, "sequence_length": 64}},  # little but launches
    "wide": {"model": {**SHAPE, "hidden_size": 512, "sequence_length": 128}},  # matrix products
}
SHARED: Dict[str, Any] = {
    "moe": {"num_experts": 8, "router": {"type": "locmoe"}},
    "optimizer": {"warmup_steps": 1},
    "train": {"global_batch_size": 8},
    "runtime": {"device": "cpu"},
}


def worker(path: str, rank: int, ranks: int, port: int, steps: int) -> None:
    """One rank of a job, which trains as the file at `path` says; the first prints what `measure` returns."""
    import mindspore as ms

    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.collectives.tcp.mesh import join_mesh
    from pangu_sigma.bench.step import random_batch
    from pangu_sigma.bench.timing import even_vocabulary
    from pangu_sigma.runtime.runtime import Runtime
    from pangu_sigma.train.engine import TrainEngine

    ms.set_device("CPU")
    config = load_config(path)
    topology = job_topology(config, ranks)
    secret = os.environ["MODES_SECRET"].encode()
    mesh = join_mesh(rank, ranks, ("127.0.0.1", port), secret, collective_timeout=LIMIT)
    backend = "local" if ranks == 1 else "tcp"
    words = even_vocabulary(config)
    batch = random_batch(micro_batch_sequences(config, topology.data), config.model.sequence_length, words)
    batches = [batch] * micro_batches_per_step(config, topology.data)
    with Runtime(create_collectives(backend, topology, rank, mesh), mesh) as runtime:
        engines = {mode: TrainEngine(config, runtime, words) for mode in MODES}
        seconds: Dict[str, List[float]] = {mode: [] for mode in MODES}
        losses: Dict[str, float] = {}
        for step in range(1, steps + 1):
            for mode, engine in engines.items():
                ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
                runtime.collectives.barrier()
                begin = time.monotonic()
                sums = engine.train_step(batches, step, 1e-3).sums
                seconds[mode].append(time.monotonic() - begin)
                losses[mode] = float(sums["task"]) / float(sums["tokens"])
        runtime.collectives.barrier()
    if rank == 0:
        print(json.dumps({"seconds": seconds, "losses": losses}))


def measure(path: Path, ranks: int, steps: int) -> Dict[str, Any]:
    """Seconds of every step and the last loss by mode, of a job of `ranks` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3", "MODES_SECRET": secrets.token_hex()}
    if ranks > 1:
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, __file__, "--steps", str(steps), "--worker", str(path), str(ranks), str(port)]
    processes = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise SystemExit(f"check_modes: a rank of {path.name} failed")
    return json.loads(next(line for line in reversed(outputs[0].splitlines()) if line.startswith("{")))


def check(folder: Path, ranks: List[int], steps: int, changes: List[str]) -> bool:
    """Prints a row a job; whether losses agree."""
    print(
        "| network | ranks | first step, s: graph | PyNative | other steps, s: graph | PyNative | PyNative / graph |\n"
        "|---|---|---|---|---|---|---|",
        flush=True,
    )
    good = True
    for name, sizes in SIZES.items():
        for number in ranks:
            path = folder / f"{name}_{number}.yaml"
            save_config(config_from_dict({**SHARED, **sizes, "parallel": {"expert": number}}), path)
            config = load_config(path, changes)
            validate(config, number)
            save_config(replace(config, train=replace(config.train, steps=steps)), path)
            found = measure(path, number, steps)
            graph, eager = (found["seconds"][mode] for mode in MODES)
            medians = median(graph[IGNORED:]), median(eager[IGNORED:])
            good &= abs(found["losses"]["pynative"] / found["losses"]["graph"] - 1.0) < ROUNDING
            print(
                f"| {name} | {number} | {graph[0]:.1f} | {eager[0]:.1f} | {medians[0]:.3f} | {medians[1]:.3f} | "
                f"{medians[1] / medians[0]:.1f} |",
                flush=True,
            )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "check_modes", help="for configurations")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4], help="processes of a job")
    parser.add_argument("--steps", type=int, default=13, help=f"of each mode, of which {IGNORED} are not counted")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another configuration")
    parser.add_argument("--worker", nargs=4, metavar=("CONFIG", "RANKS", "PORT", "RANK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        path, *numbers = options.worker
        ranks, port, rank = map(int, numbers)
        worker(path, rank, ranks, port, options.steps)
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    return 0 if check(options.folder, options.ranks, options.steps, options.set) else 1


if __name__ == "__main__":
    sys.exit(main())
