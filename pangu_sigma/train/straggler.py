"""Which rank is slower than the others: its own computation, since in wall clock all wait for the slowest."""

from typing import Dict, List, Optional, Sequence

import numpy as np

from pangu_sigma.train.metrics import HostCounters


class Stragglers:
    """Collects this rank's computation of each step, and now and then compares ranks.

    What ranks know of each other travels with the counters that they sum after every step anyway.

    Args:
        rank, ranks: this one, and their number.
        interval: steps between comparisons.
        measured: whether waiting is measured apart from computation; where it is not, or with one rank, there is
            nothing to compare.
    """

    def __init__(self, rank: int, ranks: int, interval: int, measured: bool) -> None:
        self._rank, self._ranks, self._interval = rank, ranks, interval
        self._on = measured and ranks > 1
        # Since the last comparison; None before a first step, which compiles.
        self._seconds: Optional[List[float]] = None

    def note(self, own: HostCounters, step: int) -> HostCounters:
        """The counters of step `step`, with those to be compared where a comparison is due; on all ranks alike."""
        if not self._on:
            return own
        if self._seconds is None:
            self._seconds = []
            return own
        self._seconds.append(own.compute_s)
        if step % self._interval:
            return own
        by_rank = np.zeros(self._ranks)
        by_rank[self._rank] = np.mean(self._seconds)
        self._seconds = []
        return own._replace(compute_by_rank=by_rank.tolist())


def straggler_metrics(compute_by_rank: Sequence[float]) -> Dict[str, float]:
    """Names as in `pangu_sigma.train.metrics`; none where ranks were not compared."""
    if not len(compute_by_rank):
        return {}
    slowest = int(np.argmax(compute_by_rank))
    return {
        "time/slowest_rank": slowest,
        "time/slowest_rank/compute(s)": float(compute_by_rank[slowest]),
        "time/median_rank/compute(s)": float(np.median(compute_by_rank)),
    }


def straggler_line(record: Dict[str, float], margin: float) -> str:
    """The log's line on a rank that is slower than the median by more than `margin`, from a step's `record`, or ""."""
    if "time/slowest_rank" not in record:
        return ""
    slowest, median = record["time/slowest_rank/compute(s)"], record["time/median_rank/compute(s)"]
    if slowest <= (1.0 + margin) * median:
        return ""
    return (
        f"rank {record['time/slowest_rank']} is slow: {slowest:.3f} s of its own computation a step, "
        f"median rank {median:.3f} s"
    )
