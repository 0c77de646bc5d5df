#!/usr/bin/env python3
"""Runs that diverge: at four learning rates in fp32 and fp16, and under a loss scale of 1e30, alone and on 4 ranks.

usage: python scripts/check_divergence.py [FOLDER]

Each run is made in FOLDER (default runs/divergence; what is there is not made again) next to a sound one on as many
ranks. Looked at: exit status 1 and one line of error; every file strict JSON without a number of hundreds of digits;
the run last in `summary` and `report`; `watch` and a process list that agree it has ended. Writes the table of
docs/reliability.md. Exit status 1 if something was not so.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from faults.job import LIMIT, alone, command, environment, make_config, processes_with, words
from faults.page import ROOT, write_table

RANKS = (1, 4)
STEPS = 24
CASES = {
    f"{precision}, rate {rate:g}": (f"runtime.precision={precision}", f"optimizer.learning_rate={rate!r}")
    for precision in ("fp32", "fp16")
    for rate in (1.0, 100.0, 1e6, 1e30)
}
CASES["fp16, loss scale 1e30"] = ("runtime.precision=fp16", "runtime.loss_scale.initial=1.0e+30")
COMMON = ("train.eval_rows=8", "train.eval_interval=4", "train.divergence_patience=4", "optimizer.warmup_steps=0")
LONG_NUMBER = re.compile(r"[0-9]{30}|e\+30[0-9]")


def train(folder: Path, name: str, ranks: int, overrides: tuple[str, ...]) -> tuple[Path, int, str]:
    """Run folder, exit status, and what was said on stderr, which lie next to the run."""
    run = folder / f"{name.replace(' ', '_').replace(',', '')}_{ranks}"
    note = run.with_suffix(".ended.json")
    if not note.exists():
        arguments = words(folder / "config.yaml", run, ranks, STEPS, *COMMON, *overrides)
        job = alone(arguments) if ranks == 1 else command("train_msrun.sh", ranks, arguments)
        done = subprocess.run(
            job, cwd=folder, env=environment(CHECKED_RUN=str(run)), capture_output=True, text=True, timeout=LIMIT
        )
        note.write_text(
            json.dumps([done.returncode, done.stdout + done.stderr, len(processes_with(f"CHECKED_RUN={run}"))])
        )
    status, said, left = json.loads(note.read_text())
    return run, status if not left else -left, said


def problems_of(run: Path, status: int, said: str, sound: Path) -> list[str]:
    """What is not as it should be with a run that diverged."""
    found = [] if status == 1 else [f"status {status}"]
    errors = [line for line in said.splitlines() if "error: " in line]
    if len(errors) != 1 or "the run diverged: step" not in errors[0] or "Traceback" in said:
        found.append(f"{len(errors)} lines of error")
    for path in [*run.rglob("*.json"), *run.rglob("*.jsonl")]:
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
            try:
                json.loads(line, parse_constant=lambda word: json.loads("no"))
            except ValueError:
                found.append(f"{path.name} is no strict JSON")
        found += [f"{path.name} has a number without end"] if LONG_NUMBER.search(text) else []
    summary = tool("summary", str(run), str(sound))
    rows = [line for line in summary.splitlines()[3:5]]
    found += [] if "diverged" in rows[-1] and "diverged" not in rows[0] else ["not last in summary"]
    page = run.with_suffix(".html")
    tool("report", str(run), str(sound), "--output", str(page))
    text = re.sub("<[^>]+>", " ", page.read_text(encoding="utf-8"))
    found += [] if "diverged" in text and not re.search(r"\bnan\b|\binf\b", text) else ["report does not say so"]
    found += [] if "diverged" in tool("watch", str(run)) else ["watch does not say so"]
    return found


def tool(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pangu_sigma", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
    )
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "runs" / "divergence")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make_config(folder)
    failed, rows = False, []
    sound = {ranks: train(folder, "sound", ranks, ("moe.router.type=hash",))[0] for ranks in RANKS}
    for name, overrides in CASES.items():
        cells = []
        for ranks in RANKS:
            run, status, said = train(folder, name, ranks, overrides)
            problems = problems_of(run, status, said, sound[ranks])
            failed |= bool(problems)
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            ended = f"steps {summary['progress/diverged_step']} to {summary['progress/step']}"
            cells.append("; ".join(problems) or ended)
            print(f"{name}, {ranks} ranks: {cells[-1]}", flush=True)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    print(write_table("divergence", "| run | bad steps, alone | bad steps, 4 ranks |", rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
