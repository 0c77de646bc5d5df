"""Run folders -> one number a run and metric -> mean and range over seeds, and ratios to the baseline.

Of each run: times and bytes are means over the middle half of its steps, ordered by step time, after the ignored first ones (like
a median they do not follow a step that the machine disturbed, and unlike medians they still add up); routing is the mean
over the second half of the steps, where the router is trained; validation is the last. Metrics that a run does not have are left out.
On Ascend, where the split of a step's time is MindSpore's profiler's, it is the mean over the steps that were profiled.
"""

import csv
import io
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from pangu_sigma.runtime.files import check_output, write_output
from pangu_sigma.tools.compare.files import read_lines, read_object
from pangu_sigma.tools.compare.plan import Plan, Run
from pangu_sigma.tools.compare.runner import COUNTERS, SUMMARY, folder_of, is_finished
from pangu_sigma.tools.step_trace import read_profile

STEP, EPOCH, TOKENS = "time/step(s)", "time/epoch(s)", "throughput/tokens_per_second"
COMPUTE, COMMUNICATION, OVERLAPPED, IDLE = "time/compute(s)", "time/communication(s)", "time/overlapped(s)", "time/idle(s)"
ALL_TO_ALL = "time/all_to_all(s)"
ALL_TO_ALL_SHARE, OVERLAPPED_SHARE = "time/all_to_all_share", "time/overlapped_share"
PERPLEXITY = "valid/perplexity"
INTRA, INTER = "comm/intra_node(B)", "comm/inter_node(B)"
PER_EXPERT = "moe/tokens_per_expert"
LINK = "link/node_{node}(B)"  # sent by a simulated node in the whole run, as its interface counted
Values = Dict[str, float]
Spread = Dict[str, float]  # mean, min, max, seeds (how many)
Table = Dict[str, Dict[str, Dict[str, Spread]]]  # by phase, variant, metric


@dataclass(frozen=True)
class CollectedRun:
    """A run: its numbers, and what the figures over training need."""

    run: Run
    values: Values
    records: List[Dict[str, Any]]  # metrics.jsonl, one a step
    cosines: Dict[str, Any]  # cosines.json; empty if the run measured none
    code: str  # see `code_version`; empty if the run is not finished


@dataclass(frozen=True)
class Collection:
    """What a comparison has so far: spreads over seeds, and those of each seed's ratio to the baseline's run."""

    plan: Plan
    runs: Tuple[CollectedRun, ...]
    table: Table
    ratios: Table

    def of(self, phase: str, variant: str) -> List[CollectedRun]:
        """Finished runs of a variant, by seed."""
        return sorted((r for r in self.runs if (r.run.phase, r.run.variant) == (phase, variant)), key=lambda r: r.run.seed)

    def mean(self, phase: str, variant: str, metric: str) -> Optional[float]:
        spread = self.table.get(phase, {}).get(variant, {}).get(metric)
        return spread["mean"] if spread else None

    def codes(self) -> Dict[str, int]:
        """How many of the runs each state of the code made; runs that note none count as one more state."""
        return dict(Counter(run.code or "not noted" for run in self.runs))

    def warning(self) -> str:
        """What a reader must know before comparing the runs; empty if one state of the code made them all."""
        codes = self.codes()
        made = ", ".join(f"{code}: {runs}" for code, runs in codes.items())
        return f"The runs were made with {len(codes)} states of the code ({made}), which may differ in more than the variants do." \
            if len(codes) > 1 else ""


def collect(plan: Plan, output: Path) -> Collection:
    """Reads every finished run of the plan; others are left out."""
    runs = []
    for run in plan.runs:
        folder = folder_of(output, run)
        if is_finished(run, folder):
            runs.append(collect_run(run, folder, read_lines(folder / "metrics.jsonl"), plan.warmup_steps_ignored))
    return collection_of(plan, runs)


def collect_run(run: Run, folder: Path, records: List[Dict[str, Any]], ignored: int) -> CollectedRun:
    """A run's numbers, from its records and from what else is in its folder so far. `ignored`: see `run_values`."""
    summary = read_object(folder / SUMMARY)
    values = {**run_values(records, summary, ignored), **link_values(read_object(folder / COUNTERS)),
              **traced_values(folder / "profile")}
    return CollectedRun(run, values, records, read_object(folder / "cosines.json"), str(summary.get("code", "")))


def collection_of(plan: Plan, runs: Sequence[CollectedRun]) -> Collection:
    """The runs with their tables."""
    ratios = _table(plan, runs, lambda run: _ratios(plan, run, runs))
    return Collection(plan, tuple(runs), _table(plan, runs, lambda run: run.values), ratios)


_CSV_COLUMNS = ("phase", "variant", "seed")
TABLES = {"summary.json": (b'{\n "baseline": ',), "runs.csv": (",".join(_CSV_COLUMNS).encode(),)}  # and how each begins


def check_tables(output: Path) -> None:
    """Raises InputError where `write_tables` would overwrite what it did not write."""
    for name, markers in TABLES.items():
        check_output("--output", output / name, markers)


def write_tables(collection: Collection, output: Path) -> None:
    """Writes `summary.json` and `runs.csv`, each whole or not at all. Raises InputError: as `write_output`."""
    plan = collection.plan
    summary = {"baseline": plan.baseline, "warmup_steps_ignored": plan.warmup_steps_ignored,
               "runs": {"finished": len(collection.runs), "planned": len(plan.runs)}, "code": collection.codes(),
               "phases": collection.table, "ratios_to_baseline": collection.ratios}
    write_output("--output", output / "summary.json", json.dumps(summary, indent=1) + "\n", TABLES["summary.json"])
    write_output("--output", output / "runs.csv", _csv(collection.runs), TABLES["runs.csv"])


def run_values(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], ignored: int) -> Values:
    """A run's numbers by metric. `ignored` first steps count for no time and no byte."""
    middle = middle_half([r for r in records if r.get("progress/step", 0) > ignored and number(r.get(STEP)) is not None])
    second = records[len(records) // 2:]
    values: Values = {}
    for name in sorted({name for record in records for name in record}):
        chosen = middle if name.startswith(("time/", "comm/")) else second if name.startswith("moe/") else \
            _last(records, name) if name.startswith("valid/") else []
        found = [value for value in (number(record.get(name)) for record in chosen) if value is not None]
        if found:
            values[name] = fmean(found)
    values.update(_derived(values, middle))
    unigram = number(summary.get("unigram_perplexity"))
    return {**values, "valid/unigram_perplexity": unigram} if unigram is not None else values


def link_values(counters: Mapping[str, Any]) -> Values:
    """Bytes by node, from what `scripts/simulate_cluster.sh --counters` writes."""
    return {LINK.format(node=one["node"]): float(one["tx_bytes"]["after"] - one["tx_bytes"]["before"])
            for one in counters.get("interfaces", [])}


def traced_values(folder: Path) -> Values:
    """The split of the steps that MindSpore's profiler recorded, if it did: on Ascend nothing else knows it."""
    found = read_profile(folder)
    if found is None or not found.traced:
        return {}
    split = found.mean()
    return {COMPUTE: split.compute, COMMUNICATION: split.communication, OVERLAPPED: split.overlapped, IDLE: split.idle,
            **({OVERLAPPED_SHARE: split.overlapped / split.communication} if split.communication else {})}


def _last(records: Sequence[Mapping[str, Any]], name: str) -> Sequence[Mapping[str, Any]]:
    """The last record that has the metric."""
    return [record for record in records if record.get(name) is not None][-1:]


def middle_half(records: Sequence[Mapping[str, Any]]) -> List[Mapping[str, Any]]:
    """The records between the quartiles of step time: floor(n / 4) of the fastest and as many of the slowest left out."""
    cut = len(records) // 4
    return sorted(records, key=lambda record: record[STEP])[cut:len(records) - cut]


def _derived(values: Values, middle: Sequence[Mapping[str, Any]]) -> Values:
    step = values.get(STEP)
    if not step:
        return {}
    derived = {TOKENS: fmean(r[TOKENS] * r[STEP] for r in middle) / step} if all(TOKENS in r for r in middle) else {}
    share = middle[-1].get("progress/epoch", 0) / middle[-1]["progress/step"]  # of an epoch, that one step is
    if share:
        derived[EPOCH] = step / share
    if ALL_TO_ALL in values:
        derived[ALL_TO_ALL_SHARE] = values[ALL_TO_ALL] / step
    if values.get(COMMUNICATION):
        derived[OVERLAPPED_SHARE] = values.get(OVERLAPPED, 0.0) / values[COMMUNICATION]
    return derived


def number(value: Any) -> Optional[float]:
    """None for what is no number, and for what a run that diverged writes in place of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _table(plan: Plan, runs: Sequence[CollectedRun], values_of: Callable[[CollectedRun], Values]) -> Table:
    table: Table = {}
    for phase in plan.phases:
        for variant in plan.variants:
            own = [values_of(r) for r in runs if (r.run.phase, r.run.variant) == (phase, variant)]
            if own:
                names = sorted({name for values in own for name in values})
                table.setdefault(phase, {})[variant] = {n: spread([values[n] for values in own if n in values]) for n in names}
    return table


def spread(values: Sequence[float]) -> Spread:
    return {"mean": fmean(values), "min": min(values), "max": max(values), "seeds": len(values)}


def _ratios(plan: Plan, own: CollectedRun, runs: Sequence[CollectedRun]) -> Values:
    """To the baseline's run of the same seed, which ran next to this one; nothing where there is none, or it has 0."""
    for other in runs:
        if (other.run.phase, other.run.variant, other.run.seed) == (own.run.phase, plan.baseline, own.run.seed):
            return {name: value / other.values[name] for name, value in own.values.items() if other.values.get(name)}
    return {}


def _csv(runs: Sequence[CollectedRun]) -> str:
    names = sorted({name for run in runs for name in run.values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV_COLUMNS, *names])
    for run in runs:
        writer.writerow([run.run.phase, run.run.variant, run.run.seed, *(run.values.get(name, "") for name in names)])
    return text.getvalue()
