"""Run folders -> one number a run and metric -> mean and range over seeds, and ratios to the baseline.

Of each run: times, bytes and routing by the rule of `pangu_sigma.metrics.window`; validation is the last. Metrics that
a run does not have are left out. What a run that diverged has in place of a number is infinite here: it never comes
before one, no mean hides it, files have null for it, and people read `diverged`. Where the split of a step's time is
MindSpore's profiler's (on Ascend, not tried), it is the mean over the steps that were profiled.
"""

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from pangu_sigma.metrics.perplexity import DIVERGED, is_usable, usable_perplexity
from pangu_sigma.metrics.window import STEP, measured, timed_steps
from pangu_sigma.report.comparison import COUNTERS, SUMMARY, ComparedRun, Comparison, folder_of, is_finished
from pangu_sigma.report.step_trace import read_profile
from pangu_sigma.runtime.files import check_output, write_output
from pangu_sigma.runtime.strict_json import dumps, number, read_lines, read_object

EPOCH = "time/epoch(s)"
COMPUTE, COMMUNICATION, OVERLAPPED, IDLE = (
    "time/compute(s)",
    "time/communication(s)",
    "time/overlapped(s)",
    "time/idle(s)",
)
ALL_TO_ALL = "time/all_to_all(s)"
ALL_TO_ALL_SHARE, OVERLAPPED_SHARE = "time/all_to_all_share", "time/overlapped_share"
PERPLEXITY = "valid/perplexity"
INTRA, INTER = "comm/intra_node(B)", "comm/inter_node(B)"
TOKENS_INTER = "comm/all_to_all/inter_node(B)"
PER_EXPERT = "moe/tokens_per_expert"
LINK = "link/node_{node}(B)"  # sent by a simulated node in the whole run, as its interface counted
Values = Dict[str, float]
# mean, min, max, seeds (how many); diverged (how many of them), if any did: then mean and max are infinite
Spread = Dict[str, float]
Table = Dict[str, Dict[str, Dict[str, Spread]]]  # by phase, variant, metric


@dataclass(frozen=True)
class CollectedRun:
    """A run: its numbers, and what the figures over training need."""

    run: ComparedRun
    folder: Path
    values: Values
    records: List[Dict[str, Any]]  # metrics.jsonl, one a step
    cosines: Dict[str, Any]  # cosines.json; empty if the run measured none
    code: str  # see `code_version`; empty if the run is not finished
    diverged: bool = False


@dataclass(frozen=True)
class Collection:
    """What a comparison has so far: spreads over seeds, and those of each seed's ratio to the baseline's run."""

    plan: Comparison
    runs: Tuple[CollectedRun, ...]
    table: Table
    ratios: Table

    def of(self, phase: str, variant: str) -> List[CollectedRun]:
        """Finished runs of a variant, by seed."""
        return sorted(
            (r for r in self.runs if (r.run.phase, r.run.variant) == (phase, variant)), key=lambda r: r.run.seed
        )

    def mean(self, phase: str, variant: str, metric: str) -> Optional[float]:
        """Over seeds, of a `metric` of a `variant` in a `phase`; None where it was not measured."""
        spread = self.table.get(phase, {}).get(variant, {}).get(metric)
        return spread["mean"] if spread else None

    def codes(self) -> Dict[str, int]:
        """How many of the runs each state of the code made; runs that note none count as one more state."""
        return dict(Counter(run.code or "not noted" for run in self.runs))

    def warning(self) -> str:
        """What a reader must know before comparing the runs; empty if one state of the code made them all."""
        codes = self.codes()
        if len(codes) < 2:
            return ""
        made = ", ".join(f"{code}: {runs}" for code, runs in codes.items())
        return (
            f"The runs were made with {len(codes)} states of the code ({made}), which may differ in more than the "
            "variants do."
        )


def collect(plan: Comparison, output: Path) -> Collection:
    """Reads every finished run of the plan; others are left out."""
    runs = []
    for run in plan.runs:
        folder = folder_of(output, run)
        if is_finished(run, folder):
            runs.append(collect_run(run, folder, read_lines(folder / "metrics.jsonl"), plan.warmup_steps_ignored))
    return collection_of(plan, runs)


def collect_run(run: ComparedRun, folder: Path, records: List[Dict[str, Any]], ignored: int) -> CollectedRun:
    """A run's numbers, from its records and from what else is in its folder so far.

    Args:
        run: which one it is.
        folder: its run folder.
        records: its metrics, one a step.
        ignored: first steps that count for no time and no byte; see `timed_steps`.
    """
    summary = read_object(folder / SUMMARY)
    values = {
        **run_values(records, summary, ignored),
        **link_values(read_object(folder / COUNTERS)),
        **traced_values(folder / "profile"),
    }
    return CollectedRun(
        run,
        folder,
        values,
        records,
        cosines=read_object(folder / "cosines.json"),
        code=str(summary.get("code", "")),
        diverged=has_diverged(records, summary),
    )


def has_diverged(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> bool:
    """Whether a run ended so, or stands so: its last step, or its last validation, has no usable loss."""
    losses = [record["loss/total"] for record in records[-1:] if "loss/total" in record]
    losses += [record["valid/loss"] for record in records if "valid/loss" in record][-1:]
    perplexities = [record[PERPLEXITY] for record in records if PERPLEXITY in record][-1:]
    usable = all(map(is_usable, losses)) and all(usable_perplexity(value) is not None for value in perplexities)
    return summary.get("status") == DIVERGED or not usable


def collection_of(plan: Comparison, runs: Sequence[CollectedRun]) -> Collection:
    """The runs with their tables. Ratios are to the baseline's run of the same seed, which ran next to the other one;
    there are none where there is no such run, it diverged, or it has 0.
    """
    ratios = []
    for own in runs:
        names = (own.run.phase, plan.baseline, own.run.seed)
        beside = next((one.values for one in runs if (one.run.phase, one.run.variant, one.run.seed) == names), {})
        base = {name: value for name, value in beside.items() if value and math.isfinite(value)}
        ratios.append({name: value / base[name] for name, value in own.values.items() if name in base})
    return Collection(plan, tuple(runs), _table(plan, runs, [run.values for run in runs]), _table(plan, runs, ratios))


_CSV_COLUMNS = ("phase", "variant", "seed")
TABLES = {"summary.json": (b'{\n "baseline": ',), "runs.csv": (",".join(_CSV_COLUMNS).encode(),)}  # and how each begins


def check_tables(output: Path) -> None:
    """Raises InputError where `write_tables` would overwrite what it did not write."""
    for name, markers in TABLES.items():
        check_output("--output", output / name, markers)


def write_tables(collection: Collection, output: Path) -> None:
    """Writes `summary.json` and `runs.csv`, each whole or not at all. Raises InputError: as `write_output`."""
    plan = collection.plan
    summary = {
        "baseline": plan.baseline,
        "warmup_steps_ignored": plan.warmup_steps_ignored,
        "runs": {"finished": len(collection.runs), "planned": len(plan.runs)},
        "code": collection.codes(),
        "phases": collection.table,
        "ratios_to_baseline": collection.ratios,
    }
    write_output("--output", output / "summary.json", dumps(summary, indent=1) + "\n", TABLES["summary.json"])
    names = sorted({name for run in collection.runs for name in run.values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV_COLUMNS, *names])
    for run in collection.runs:
        cells = [DIVERGED if math.isinf(run.values.get(name, 0.0)) else run.values.get(name, "") for name in names]
        writer.writerow([run.run.phase, run.run.variant, run.run.seed, *cells])
    write_output("--output", output / "runs.csv", text.getvalue(), TABLES["runs.csv"])


def run_values(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], ignored: int) -> Values:
    """A run's numbers by metric.

    Args:
        records: its metrics, one a step.
        summary: its summary.json; empty while it is unfinished.
        ignored: first steps that count for no time and no byte; see `timed_steps`.
    """
    values: Values = {name: value for name, value in measured(records, ignored).items() if not isinstance(value, list)}
    for name in sorted({name for record in records for name in record if name.startswith("valid/")}):
        last = [record[name] for record in records if name in record][-1]
        found = usable_perplexity(last) if name.endswith("perplexity") else number(last)
        values[name] = math.inf if found is None else found
    if has_diverged(records, summary):
        values.update(dict.fromkeys(("valid/loss", PERPLEXITY), math.inf))  # whatever an earlier validation found
    step = values.get(STEP)
    if step:
        last_timed = timed_steps(records, ignored)[-1]
        share = last_timed.get("progress/epoch", 0) / last_timed["progress/step"]  # of an epoch, that one step is
        if share:
            values[EPOCH] = step / share
        if ALL_TO_ALL in values:
            values[ALL_TO_ALL_SHARE] = values[ALL_TO_ALL] / step
        if values.get(COMMUNICATION):
            values[OVERLAPPED_SHARE] = values.get(OVERLAPPED, 0.0) / values[COMMUNICATION]
    unigram = number(summary.get("unigram_perplexity"))
    return {**values, "valid/unigram_perplexity": unigram} if unigram is not None else values


def link_values(counters: Mapping[str, Any]) -> Values:
    """Bytes by node, from what `scripts/simulate_cluster.sh --counters` writes."""
    return {
        LINK.format(node=one["node"]): float(one["tx_bytes"]["after"] - one["tx_bytes"]["before"])
        for one in counters.get("interfaces", [])
    }


def traced_values(folder: Path) -> Values:
    """The split of the steps that MindSpore's profiler recorded, if it did: nothing else would know it on
    Ascend (not tried)."""
    found = read_profile(folder)
    if found is None or not found.traced:
        return {}
    split = found.mean()
    return {
        COMPUTE: split.compute,
        COMMUNICATION: split.communication,
        OVERLAPPED: split.overlapped,
        IDLE: split.idle,
        **({OVERLAPPED_SHARE: split.overlapped / split.communication} if split.communication else {}),
    }


def _table(plan: Comparison, runs: Sequence[CollectedRun], found: Sequence[Values]) -> Table:
    """Means over seeds and their ranges of what was `found` of each of the runs."""
    table: Table = {}
    for phase in plan.phases:
        for variant in plan.variants:
            own = [values for r, values in zip(runs, found) if (r.run.phase, r.run.variant) == (phase, variant)]
            if own:
                names = sorted({name for values in own for name in values})
                table.setdefault(phase, {})[variant] = {
                    n: spread([values[n] for values in own if n in values]) for n in names
                }
    return table


def spread(values: Sequence[float]) -> Spread:
    """Mean and range over seeds; infinite values are of those that diverged."""
    diverged = sum(map(math.isinf, values))
    found: Spread = {"mean": fmean(values), "min": min(values), "max": max(values), "seeds": len(values)}
    return {**found, "diverged": diverged} if diverged else found
