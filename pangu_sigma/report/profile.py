"""`pangu-sigma profile RUN`: where the time of the profiled steps went, rank by rank."""

from pathlib import Path
from typing import List

from locmoe_ops.errors import InputError
from pangu_sigma.report.step_trace import TimeSplit, mean, read_profile


def table(run: Path) -> List[str]:
    """A line a rank, and their mean; at most 80 columns. Raises InputError where there is no profile."""
    found = read_profile(run / "profile") or read_profile(run)
    if found is None:
        raise InputError(f"{run}: no profile in it, expected the folder of a run with train.profile")

    def line(name: str, split: TimeSplit) -> str:
        alone = split.communication - split.overlapped
        pieces = (split.step, split.compute, split.communication, split.overlapped, split.idle)
        return (
            f"{name:<6}"
            + "".join(f"{1e3 * piece:>13.3f}" for piece in pieces)
            + f"{alone / split.step if split.step else 0.0:>9.1%}"
        )

    steps = max(map(len, found.ranks.values()))
    source = "MindSpore's profiler" if found.traced else "this project's timers"
    lines = [
        f"{steps} steps of {len(found.ranks)} ranks, by {source}; milliseconds a step",
        "",
        f"{'rank':<6}{'step':>13}{'computation':>13}{'communicat.':>13}{'overlapped':>13}{'idle':>13}{'exposed':>9}",
        "-" * 80,
    ]
    lines += [line(str(rank), mean(own)) for rank, own in found.ranks.items()]
    return [
        *lines,
        "-" * 80,
        line("mean", found.mean()),
        "",
        "step = computation + communication - overlapped + idle",
        "exposed: share of the step that is communication alone",
    ]
