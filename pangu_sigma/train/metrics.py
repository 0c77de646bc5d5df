"""What a run reports: where each number comes from, and the file they are written to.

What is not finite is null in every file (see `pangu_sigma.runtime.strict_json`). Fractions are in [0, 1]. Bytes are
sums over all ranks of what they sent in the step. Of the times, `time/step(s)` is rank 0's wall clock; the others are
means over ranks and add up to a step: step = compute + communication + idle - overlapped. Every name and its meaning:
`pangu_sigma.metrics.definitions`, docs/metrics.md. What cannot occur in a run the loop leaves out.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor

from locmoe_ops.collectives.interface import Collectives
from pangu_sigma.errors import OutputNotWritten
from pangu_sigma.metrics.definitions import CAUSES, OVERLAPPING
from pangu_sigma.metrics.load import load_entropy, max_violation, min_violation
from pangu_sigma.metrics.perplexity import perplexity_of
from pangu_sigma.runtime import files
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.strict_json import dumps, finite_only
from pangu_sigma.train.trackers import Tracker

MICROSECONDS = 1e6


class Traffic(NamedTuple):
    """What collectives took, all of them or those of one cause.

    Attributes:
        communication_s, idle_s, overlapped_s: seconds in which something travelled, of waiting for other ranks, and of
            communication that computation overlapped.
        intra_node_bytes, inter_node_bytes: sent inside nodes and between them.
    """

    communication_s: float = 0.0
    idle_s: float = 0.0
    overlapped_s: float = 0.0
    intra_node_bytes: float = 0.0
    inter_node_bytes: float = 0.0


class HostCounters(NamedTuple):
    """This rank's own measurements of one step, or their sums over ranks.

    Attributes:
        step_s: wall clock in seconds.
        total: traffic of everything.
        all_to_all, gradient, tensor: traffic of each of `CAUSES`.
        stops: ranks with a request to end the run (see `pangu_sigma.train.loop.StopRequest`).
        compute_by_rank: where ranks are compared, each one's own computation <float64>[ranks] in seconds, of which a
            rank knows its own place and has zeros elsewhere; else empty.
    """

    step_s: float
    total: Traffic
    all_to_all: Traffic
    gradient: Traffic
    tensor: Traffic
    stops: int = 0
    compute_by_rank: Sequence[float] = ()

    @property
    def compute_s(self) -> float:
        """Wall clock without communication and waiting."""
        return self.step_s - self.total.communication_s - self.total.idle_s + self.total.overlapped_s


class CounterClock:
    """Differences of the collectives' running totals between two moments."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._start = self._read()

    def restart(self) -> None:
        self._start = self._read()

    def elapsed(self, step_s: float) -> HostCounters:
        return _host_counters(step_s, self._read() - self._start)

    def _read(self) -> np.ndarray:
        """<float64>[1 + causes, 5]"""
        rows = []
        for cause in (None, *CAUSES):
            times, sent = self._collectives.times(cause), self._collectives.bytes_sent(cause)
            rows.append((times.communication_s, times.idle_s, times.overlapped_s, sent.intra_node, sent.inter_node))
        return np.array(rows)


def _host_counters(step_s: float, rows: np.ndarray) -> HostCounters:
    """rows <float64>[1 + causes, 5]: of everything, and of each cause."""
    everything, all_to_all, gradient, tensor = (Traffic(*row) for row in rows)
    return HostCounters(step_s, everything, all_to_all, gradient, tensor)


def sum_counters(host_sum: HostSum, steps: Sequence[HostCounters], most: int = 1) -> List[HostCounters]:
    """Counters of every rank, summed, each step's by themselves, in one exchange.

    Microseconds and bytes travel as int64: up to 2.9e5 years and 9.2e18 bytes a step.

    Args:
        host_sum: over all ranks.
        steps: this rank's counters of some steps.
        most: so many steps travel, empty ones included, so that few or many need one graph.
    """
    scale = np.array([MICROSECONDS] * 3 + [1.0] * 2)
    ranks = max(len(own.compute_by_rank) for own in steps)
    rows = np.zeros((max(most, len(steps)), 2 + (1 + len(CAUSES)) * scale.size + ranks), np.int64)
    for row, own in zip(rows, steps):
        traffic = np.rint(np.array([own.total, own.all_to_all, own.gradient, own.tensor]) * scale)
        compared = np.rint(np.array(own.compute_by_rank) * MICROSECONDS)
        row[:2] = round(own.step_s * MICROSECONDS), own.stops
        row[2 : 2 + traffic.size] = traffic.reshape(-1)
        row[row.size - compared.size :] = compared
    summed = host_sum(Tensor(rows.reshape(-1))).asnumpy().reshape(rows.shape)
    totals = []
    for row, own in zip(summed, steps):
        traffic = row[2 : 2 + (1 + len(CAUSES)) * scale.size].reshape(-1, scale.size) / scale
        total = _host_counters(float(row[0]) / MICROSECONDS, traffic)
        # Ranks are compared in all steps or in none, which their own counters say.
        compared = row[row.size - len(own.compute_by_rank) :] / MICROSECONDS
        totals.append(total._replace(stops=int(row[1]), compute_by_rank=compared.tolist()))
    return totals


def loss_metrics(sums: Dict[str, np.ndarray]) -> Dict[str, float]:
    """Losses in nats a token; `loss/total` is what is minimised."""
    tokens = max(float(sums["tokens"]), 1.0)
    task, aux, locality = (float(sums[name]) / tokens for name in ("task", "aux", "locality"))
    return {"loss/total": task + aux + locality, "loss/task": task, "loss/aux": aux, "loss/locality": locality}


class MeasuredLayers(NamedTuple):
    """Which of the sparse layers, bottom up, have what only some routers have.

    Attributes:
        mu: each layer's weight of the locality loss; 0 where there is none.
        counted: those that count undecided tokens.
    """

    mu: Tuple[float, ...]
    counted: Tuple[bool, ...]


def routing_metrics(
    sums: Dict[str, np.ndarray],
    mu: Optional[float] = 0.0,
    measured: Optional[MeasuredLayers] = None,
    tokens: int = 1,
) -> Dict[str, Any]:
    """Over all sparse layers and ranks of the step; {} without experts.

    Args:
        sums: of the step. mu: the weight of its locality loss, 0: there is none to take the divergence from; None: as
            `measured` has it.
        measured: layers that have single metrics; None: all. tokens: of the global batch, padding included.
    """
    assigned, kept = sums["assigned"], float(sums["kept"].sum())
    total = float(assigned.sum())
    if total == 0.0:
        return {}
    measured = measured or MeasuredLayers((1.0,) * len(assigned), (True,) * len(assigned))
    of_layers, counted = assigned.sum(1), list(measured.counted)
    localised = [weight for weight in measured.mu if weight > 0.0]
    mu = float(np.mean(localised or [0.0])) if mu is None else mu
    # Where a dispatcher does not count its copies, each assignment travels by itself.
    copies = sums["copies"] if "copies" in sums else sums["kept"] - sums["kept_local"]
    return {
        "moe/local_fraction": float(sums["kept_local"].sum()) / max(kept, 1.0),
        "moe/local_fraction_by_layer": (sums["kept_local"] / np.maximum(sums["kept"], 1.0)).tolist(),
        "moe/copies_between_nodes": float(copies.sum()) / tokens / len(copies),
        "moe/drop_fraction": 1.0 - kept / total,
        "moe/drop_fraction_by_layer": (1.0 - sums["kept"] / np.maximum(of_layers, 1.0)).tolist(),
        "moe/load_max_over_mean": float((assigned.max(1) / assigned.mean(1)).mean()),
        "moe/max_violation": float(max_violation(assigned).mean()),
        "moe/min_violation": float(min_violation(assigned).mean()),
        "moe/load_entropy": float(load_entropy(assigned).mean()),
        **_nodes_metrics(sums),
        "moe/load_max_over_mean_by_layer": (assigned.max(1) / assigned.mean(1)).tolist(),
        "moe/tokens_per_expert": assigned.astype(int).tolist(),
        **({"moe/locality_divergence": _divergence(sums, mu, len(localised))} if mu > 0.0 and localised else {}),
        **(
            {"moe/undecided_fraction": float(sums["undecided"].sum()) / max(float(of_layers[counted].sum()), 1.0)}
            if "undecided" in sums
            else {}
        ),
    }


def _nodes_metrics(sums: Dict[str, np.ndarray]) -> Dict[str, Any]:
    """Tokens by the number of nodes that their experts are on, where they are counted."""
    if "tokens_by_nodes" not in sums:
        return {}
    counts = sums["tokens_by_nodes"]
    shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1.0)).mean(0)
    return {
        "moe/tokens_by_nodes": shares.tolist(),
        "moe/nodes_per_token": float(shares @ np.arange(1, len(shares) + 1)),
    }


def _divergence(sums: Dict[str, np.ndarray], mu: float, layers: int) -> float:
    """KL(D_c || D_l) in nats, mean over the `layers` that have the loss, which has the weight `mu` on average."""
    return float(sums["locality"]) / max(float(sums["tokens"]), 1.0) / mu / layers


def host_metrics(total: HostCounters, ranks: int, step_s: float, tokens: int) -> Dict[str, float]:
    """Times, bytes and throughput of a step.

    Args:
        total: counters, summed over ranks.
        ranks: their number.
        step_s: wall clock of this rank in seconds.
        tokens: of the global batch, padding included.
    """
    communication, idle, overlapped = (seconds / ranks for seconds in total.total[:3])
    metrics = {
        "time/step(s)": step_s,
        "time/compute(s)": total.step_s / ranks - communication - idle + overlapped,
        "time/communication(s)": communication,
        "time/overlapped(s)": overlapped,
        "time/idle(s)": idle,
        "comm/intra_node(B)": total.total.intra_node_bytes,
        "comm/inter_node(B)": total.total.inter_node_bytes,
        "throughput/tokens_per_second": tokens / step_s,
    }
    for cause in CAUSES:
        traffic: Traffic = getattr(total, cause)
        metrics[f"time/{cause}(s)"] = (traffic.communication_s + traffic.idle_s) / ranks
        metrics[f"time/{cause}/idle(s)"] = traffic.idle_s / ranks
        if cause in OVERLAPPING:
            metrics[f"time/{cause}/overlapped(s)"] = traffic.overlapped_s / ranks
        metrics[f"comm/{cause}/intra_node(B)"] = traffic.intra_node_bytes
        metrics[f"comm/{cause}/inter_node(B)"] = traffic.inter_node_bytes
    return metrics


def validation_metrics(sums: Dict[str, np.ndarray], prefix: str = "valid/") -> Dict[str, Optional[float]]:
    """Task loss in nats a token on the fixed validation rows, and its exponential (None where that is no float64).

    `valid/...` is the model as it is trained, `valid/local_term_off/...` the same with the local term of its routers at
    strength 0.
    """
    loss = float(sums["task"]) / max(float(sums["tokens"]), 1.0)
    return {f"{prefix}loss": loss, f"{prefix}perplexity": perplexity_of(loss)}


class MetricsLog:
    """`metrics.jsonl`: one JSON object a step. A resumed run keeps the lines of the steps before it and adds its own.

    Args:
        path: of the file.
        last_step: the step that the run resumes after, 0: none.
        trackers: get the same records.

    Attributes:
        records: of all steps so far.
    """

    def __init__(self, path: Path, last_step: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = path
        self._trackers = trackers
        self.records: List[Dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the run was cut off
                break
            if record.get("progress/step", 0) <= last_step:
                self.records.append(record)
        write_atomically(path, "".join(dumps(record) + "\n" for record in self.records))
        self._file = open(path, "ab", buffering=0)  # what a full disk has not taken must not be tried again at the end

    def write(self, record: Dict[str, Any]) -> None:
        """Adds the metrics of a step. Raises OutputNotWritten."""
        record = finite_only(record)
        self.records.append(record)
        line = (dumps(record) + "\n").encode("utf-8")
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _not_written(self._path, error) from None
        for tracker in self._trackers:
            tracker.write(record)

    def close(self, cosines: Optional[Dict[str, Any]] = None) -> None:
        """`cosines`: what cosines.json is to hold, for the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.write_cosines(cosines or {})
            tracker.close()


def write_atomically(path: Path, text: str) -> None:
    """As `pangu_sigma.runtime.files.write_atomically`. Raises OutputNotWritten."""
    try:
        files.write_atomically(path, text)
    except OSError as error:
        raise _not_written(path, error) from None


def _not_written(path: Path, error: OSError) -> OutputNotWritten:
    return OutputNotWritten(f"{path}: cannot be written ({error.strerror or error}); expected a disk with room for it")
