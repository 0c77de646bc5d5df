#!/usr/bin/env python3
"""Measures memory and step time of small CPU runs versus what `pangu-sigma plan` predicts.

usage: python scripts/check_planner.py [--folder DIR] [--only CASE ...] [--report]

Some cases calibrate (their medians are what configs/hardware/cpu.yaml is made from), the others test: --report alone
reads what was measured and prints both, with the figures that a least-squares fit to the calibrating cases gives. Cases
that DIR holds are not run again. Nodes are simulated (Linux, root, iproute2: see scripts/simulate_cluster.sh). Run it
on a machine that does nothing else.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import yaml
from scipy.optimize import nnls

from pangu_sigma.config.load import load_config
from pangu_sigma.planner.cluster import cluster_of
from pangu_sigma.planner.hardware import HardwareFigure
from pangu_sigma.planner.memory import layer_activations
from pangu_sigma.planner.plan import make_plan
from pangu_sigma.planner.predict import moved_bytes, rank_flops
from pangu_sigma.runtime.text_table import TableColumn, text_table

ROOT = Path(__file__).resolve().parents[1]
WORDS = 2000
STEPS, IGNORED = 9, 3  # the first steps compile, and kernels tune themselves
BASE = {
    "model": {"num_heads": 8, "sequence_length": 128, "activation": "fast_gelu"},
    "moe": {"num_groups": 2, "num_experts": 8, "router": {"type": "switch"}},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": STEPS, "eval_rows": 0, "cosines": False},
    "runtime": {"device": "cpu"},
}
# Python imports `sitecustomize` at start-up; this one notes how much memory a training process took at most.
SITECUSTOMIZE = """
import atexit, json, os, resource, sys, uuid
def note():
    if "pangu_sigma" in sys.argv[0] and os.environ.get("MS_ROLE") != "MS_SCHED":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with open(os.path.join(os.environ["PLANNER_PEAKS"], uuid.uuid4().hex), "w") as file:
            json.dump(peak, file)
atexit.register(note)
"""


@dataclass(frozen=True)
class Case:
    """A run: overrides of BASE; nodes x workers with a link of `rate` Mbit/s (0: one process)."""

    name: str
    role: str
    overrides: dict
    nodes: int = 1
    workers: int = 1
    rate: int = 0


def _case(name: str, role: str, hidden: int, dense: int, sparse: int, rows: int, **further: object) -> Case:
    ranks = {key: further.pop(key) for key in ("nodes", "workers", "rate") if key in further}
    sizes = {
        "model.hidden_size": hidden,
        "model.dense_layers": dense,
        "model.sparse_layers": sparse,
        "train.global_batch_size": rows,
    }
    return Case(name, role, {**sizes, **{key.replace("__", "."): value for key, value in further.items()}}, **ranks)


CASES = (
    _case("one-a", "calibrate", 256, 2, 2, 16),
    _case("one-b", "calibrate", 512, 3, 1, 8),
    _case("one-c", "calibrate", 384, 5, 0, 24),
    _case("one-d", "calibrate", 256, 1, 3, 32, moe__num_experts=16, train__micro_batch_size=16),
    _case("two-a", "calibrate", 256, 2, 2, 16, nodes=2, rate=200, parallel__expert=2),
    _case(
        "two-b", "calibrate", 384, 1, 2, 16, nodes=2, rate=400, parallel__expert=2, moe__dispatch__type="hierarchical"
    ),
    _case("one-g", "calibrate", 256, 0, 1, 8),
    _case("one-h", "calibrate", 256, 4, 4, 8),
    _case("four-b", "calibrate", 192, 2, 1, 16, nodes=2, workers=2, rate=400, parallel__expert=4),
    _case("one-e", "test", 448, 4, 2, 12),
    _case("one-f", "test", 320, 2, 4, 20, moe__num_experts=16),
    _case("two-c", "test", 320, 2, 2, 16, nodes=2, rate=300, parallel__expert=2),
    _case(
        "four-a",
        "test",
        256,
        1,
        2,
        16,
        nodes=2,
        workers=2,
        rate=200,
        parallel__expert=4,
        moe__dispatch__type="hierarchical",
    ),
    _case("one-i", "test", 384, 1, 3, 12),
    _case("two-d", "test", 256, 3, 1, 24, nodes=2, rate=150, parallel__expert=2),
)


# ---- measuring


def prepare(folder: Path) -> None:
    """Two domains of made-up words, and a tokenizer of theirs."""
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("abcdefghijklmnop"), 5)) for _ in range(3000)])
    sources = {}
    for domain in ("one", "two"):
        source = folder / "texts" / domain
        source.mkdir(parents=True)
        for number in range(40):
            (source / f"{number}.txt").write_text(" ".join(generator.choice(words, 1500)))
        sources[domain] = str(source)
    data = {
        "path": str(folder / "data"),
        "prepare": {"sources": sources, "vocab_size": WORDS, "validation_fraction": 0.1},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump({**BASE, "data": data}))
    command = [sys.executable, "-m", "pangu_sigma", "prepare", str(folder / "base.yaml")]
    subprocess.run(command, check=True, env=environment(folder, "prepare"))
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)


def environment(folder: Path, name: str) -> dict:
    peaks = folder / "peaks" / name
    peaks.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "PLANNER_PEAKS": str(peaks), "GLOG_v": "3"}


def measure(case: Case, folder: Path) -> dict:
    """Runs a case; its median step in seconds, and the most memory that a rank took, in bytes."""
    output = folder / "runs" / case.name
    for earlier in (output, folder / "peaks" / case.name):  # of a run that was cut off
        shutil.rmtree(earlier, ignore_errors=True)
    settings = {**case.overrides, "train.output_dir": str(output)}
    given = [
        str(folder / "base.yaml"),
        *(word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")),
    ]
    if case.rate:
        cluster = [
            "--nodes",
            str(case.nodes),
            "--ranks-per-node",
            str(case.workers),
            "--rate",
            f"{case.rate}mbit",
            "--pin",
        ]
        command = [
            "bash",
            str(ROOT / "scripts/simulate_cluster.sh"),
            *cluster,
            "--",
            "bash",
            str(ROOT / "scripts/train_msrun.sh"),
            *given,
        ]
    else:
        command = [sys.executable, "-m", "pangu_sigma", "train", *given]
    subprocess.run(command, check=True, env=environment(folder, case.name), stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()][IGNORED:]
    peaks = [json.loads(file.read_text()) for file in (folder / "peaks" / case.name).iterdir()]
    seconds = [name for name in records[0] if name.startswith("time/") and name.endswith("(s)")]
    times = {name: median(record[name] for record in records) for name in seconds}
    return {"memory": max(peaks), "seconds": times["time/step(s)"], "load": os.getloadavg()[0], "times": times}


# ---- comparing


@dataclass(frozen=True)
class Planned:
    """What the planner says of a case, and what a fit of its figures needs."""

    memory: float
    seconds: float
    memory_row: (
        tuple  # bytes for each byte reserved, in all and a layer, for an activation factor of 1; and all other bytes
    )
    seconds_row: tuple  # seconds of computation, of 1 / efficiency, 1 / bandwidth, layer time
    communication: float


def planned(case: Case, folder: Path) -> Planned:
    sets = [f"{key}={json.dumps(value)}" for key, value in case.overrides.items()]
    config = load_config(folder / "base.yaml", sets)
    cluster = cluster_of(config, case.nodes, case.workers, "cpu")
    if case.rate:
        link = replace(cluster.hardware.network, bandwidth_gb_s=HardwareFigure(case.rate / 8e3, source="--rate"))
        cluster = replace(cluster, hardware=replace(cluster.hardware, network=link))
    plan = make_plan(config, cluster)
    memory, hardware, job = plan.memory, plan.hardware, plan.job
    share, layers = hardware.sharing(job.topology), job.blocks + 1
    activations = sum(layer_activations(job))
    memory_row = (1.0, job.blocks + 1, activations, memory.total - memory.reserved - memory.activations)
    products = sum(rank_flops(job).values()) * share / hardware.peak_flops("fp32")
    seconds = (products, moved_bytes(job) * share, layers * job.micro_batches * share)
    return Planned(memory.total, plan.time.total, memory_row, seconds, plan.time.total - plan.time.compute)


def report(measured: dict, folder: Path) -> None:
    """Both sides by case, and the figures that fit the calibrating cases best."""
    plans = {case.name: planned(case, folder) for case in CASES}
    rows = []
    for case in CASES:
        found, plan = measured.get(case.name), plans[case.name]
        if found is None:
            rows.append([case.name, case.role, "not measured", *[""] * 6])
            continue
        memory, seconds = found["memory"], found["seconds"]
        of_memory = [f"{memory / 1e9:.3f}", f"{plan.memory / 1e9:.3f}", f"{plan.memory / memory - 1:+.1%}"]
        of_time = [f"{seconds:.3f}", f"{plan.seconds:.3f}", f"{plan.seconds / seconds - 1:+.1%}"]
        rows.append([case.name, case.role, *of_memory, *of_time, f"{found['load']:.1f}"])
    words, numbers = ("case", "role"), ("memory GB", "planned", "", "step s", "planned", "", "load")
    columns = [*(TableColumn(title, "<") for title in words), *map(TableColumn, numbers)]
    print("\n".join(text_table(columns, rows, rule=False)))
    known = [case.name for case in CASES if case.role == "calibrate" and case.name in measured]
    if len(known) >= 4:
        _fit(known, measured, plans)


def _fit(names: list, measured: dict, plans: dict) -> None:
    """Least squares of relative errors, with figures of 0 or more and an efficiency of at most 1."""
    pairs = [(plans[name], measured[name]) for name in names]
    memory = [(plan.memory_row[:3], found["memory"] - plan.memory_row[3], found["memory"]) for plan, found in pairs]
    reserved, layer, factor = _least_squares(memory)
    print(f"fit: reserved_gb {reserved / 1e9:.3f}, per_layer_mb {layer / 1e6:.1f}, activation_factor {factor:.3f}")
    seconds = [
        (plan.seconds_row, found["seconds"] - plan.communication - plan.seconds_row[0], found["seconds"])
        for plan, found in pairs
    ]
    beyond, passes, layers = _least_squares(seconds)  # beyond the products at their peak
    print(
        f"fit: efficiency {1 / (1 + beyond):.3f}, bandwidth_gb_s {1 / max(passes, 1e-12) / 1e9:.2f}, layer_ms "
        f"{layers * 1e3:.2f}"
    )


def _least_squares(equations: list) -> np.ndarray:
    """equations: (row, target, what the error is relative to)."""
    rows = np.array([np.array(row) / scale for row, _, scale in equations])
    sizes = np.abs(rows).max(0)
    return nnls(rows / sizes, np.array([target / scale for _, target, scale in equations]))[0] / sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", default="runs/check_planner", help="data, runs and measurements (default: runs/check_planner)"
    )
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="cases to run (default: all)")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    folder = Path(options.folder).resolve()
    results = folder / "measured.json"
    measured = json.loads(results.read_text()) if results.exists() else {}
    if not options.report:
        if not (folder / "sitecustomize.py").exists():
            prepare(folder)
        for case in CASES:
            if case.name not in measured and case.name in (options.only or [case.name]):
                measured[case.name] = measure(case, folder)
                results.write_text(json.dumps(measured, indent=1))
    report(measured, folder)


if __name__ == "__main__":
    main()
