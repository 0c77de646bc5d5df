"""Where the time of profiled steps went, read and shown: MindSpore's step traces (Ascend), or this project's timers by
rank (CPU).

The profiler of MindSpore 2.7 to 2.10 writes ASCEND_PROFILER_OUTPUT/step_trace_time.csv, a row a step, in microseconds:
Computing, Communication, Overlapped (both at once), Communication(Not Overlapped), Free (the device does neither), and
others that are not used here. So a step = Computing + Communication - Overlapped + Free, as in this project's own
split. What differs: on Ascend, waiting for a peer inside a collective is communication, and idle is a device that waits
for its host (by MindSpore's documentation; no trace of a device was seen).
"""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.text_table import RULE, TableColumn, text_table

TRACE = "ASCEND_PROFILER_OUTPUT/step_trace_time.csv"
STEP, COMPUTING, COMMUNICATION, OVERLAPPED, ALONE, FREE = COLUMNS = (
    "Step",
    "Computing",
    "Communication",
    "Overlapped",
    "Communication(Not Overlapped)",
    "Free",
)
_RANK = re.compile(r"rank_(\d+)(?:_\d+_(\d+)_ascend_ms)?")
_ROUNDING_US = 1.0  # the file has three decimals; sums of many rounded durations may differ by more
MICROSECOND = 1e-6


class TimeSplit(NamedTuple):
    """Seconds of a step on one rank: step = compute + communication - overlapped + idle."""

    compute: float
    communication: float
    overlapped: float
    idle: float

    @property
    def step(self) -> float:
        return self.compute + self.communication - self.overlapped + self.idle


def mean(splits: Sequence[TimeSplit]) -> TimeSplit:
    """Of each category."""
    return TimeSplit(*(fmean(column) for column in zip(*splits)))


class Profile(NamedTuple):
    """Splits by rank, in the order of steps; `traced`: by MindSpore's profiler."""

    ranks: dict[int, list[TimeSplit]]
    traced: bool

    def mean(self) -> TimeSplit:
        """Over steps and ranks."""
        return mean([split for own in self.ranks.values() for split in own])


def read_profile(folder: Path) -> Profile | None:
    """What a run's `profile` folder holds; None if nothing. Of several traces of a rank the newest counts.

    Raises InputError: a file there is not what it should be.
    """
    traces: dict[int, tuple[str, Path]] = {}
    for path in folder.glob(f"*/{TRACE}"):
        found = _RANK.fullmatch(path.parents[1].name)
        if found and found[2]:
            rank, time = int(found[1]), found[2]
            traces[rank] = max(traces.get(rank, ("", path)), (time, path))
    if traces:
        return Profile({rank: read_step_trace(path) for rank, (_, path) in sorted(traces.items())}, traced=True)
    timers = {int(found[1]): path for path in folder.glob("rank_*.json") if (found := _RANK.fullmatch(path.stem))}
    ranks: dict[int, list[TimeSplit]] = {}
    for rank, path in sorted(timers.items()):
        try:
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            ranks[rank] = [TimeSplit(*(float(step[f"{name}(s)"]) for name in TimeSplit._fields)) for step in steps]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: not a rank's timers ({type(error).__name__}: {error}), expected what train.profile writes"
            ) from None
    return Profile(ranks, traced=False) if ranks else None


def read_step_trace(path: Path) -> list[TimeSplit]:
    """The steps of one rank, in order, from a `step_trace_time.csv`.

    Raises InputError: it cannot be read, lacks a column or steps, or holds what is no time, or times that do not fit
    together.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
            columns = rows[0] if rows else {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected MindSpore's step trace") from None
    if not rows:
        raise InputError(f"{path}: no step in it, expected a row a step")
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise InputError(f"{path}: no column {missing[0]}, expected {', '.join(COLUMNS)}")
    splits = []
    for _, row in sorted(((_number(row, STEP, path), row) for row in rows), key=lambda each: each[0]):
        computing, communication, overlapped, alone, free = (_number(row, name, path) for name in COLUMNS[1:])
        tolerance = _ROUNDING_US + 1e-3 * communication
        if abs(communication - overlapped - alone) > tolerance or overlapped > computing + tolerance:
            raise InputError(
                f"{path}: step {row[STEP]}: {COMMUNICATION} {communication}, {OVERLAPPED} {overlapped}, {ALONE} "
                f"{alone} and {COMPUTING} {computing} do not fit together"
            )
        splits.append(TimeSplit(*(time * MICROSECOND for time in (computing, communication, overlapped, free))))
    return splits


def _number(row: dict[str, Any], name: str, path: Path) -> float:
    try:
        value = float(row[name])
        if 0.0 <= value < math.inf:
            return value
    except (TypeError, ValueError):
        pass
    raise InputError(f"{path}: {name}: found {row[name]!r}, expected a number of at least 0")


def profile_table(run: Path) -> list[str]:
    """What `pangu-sigma profile` shows of a run's folder, or of a folder of traces: a line a rank, and their mean.

    Raises InputError: there is no profile.
    """
    found = read_profile(run / "profile") or read_profile(run)
    if found is None:
        raise InputError(f"{run}: no profile in it, expected the folder of a run with train.profile")

    def row(name: str, split: TimeSplit) -> list[str]:
        alone = split.communication - split.overlapped
        pieces = (split.step, split.compute, split.communication, split.overlapped, split.idle)
        return [name, *(f"{1e3 * piece:.3f}" for piece in pieces), f"{alone / split.step if split.step else 0.0:.1%}"]

    steps = max(map(len, found.ranks.values()))
    source = "MindSpore's profiler" if found.traced else "this project's timers"
    titles = ("step", "computation", "communication", "overlapped", "idle", "exposed")
    rows = [row(str(rank), mean(own)) for rank, own in found.ranks.items()]
    return [
        f"{steps} steps of {len(found.ranks)} ranks, by {source}; milliseconds a step",
        "",
        *text_table([TableColumn("rank", "<"), *map(TableColumn, titles)], [*rows, RULE, row("mean", found.mean())]),
        "",
        "step = computation + communication - overlapped + idle",
        "exposed: share of the step that is communication alone",
    ]
