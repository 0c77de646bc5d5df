"""A collection -> one HTML file that explains itself: what was compared, how it came out, figures, every number."""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional

from pangu_sigma.config.derived import tokens_per_step
from pangu_sigma.metrics.window import TOKENS
from pangu_sigma.report import collect as c
from pangu_sigma.report.collect import Collection, Spread
from pangu_sigma.report.comparison import SINGLE_PHASE
from pangu_sigma.report.facts import cluster_text, facts_table, run_facts
from pangu_sigma.report.figures import all_figures
from pangu_sigma.report.numbers import with_range
from pangu_sigma.report.page import MARKERS, embedded, figure, page, paragraph, section, table
from pangu_sigma.report.plot import INSTALL, can_draw
from pangu_sigma.runtime.files import check_output, write_output

# Metrics with names of their own, in the order of the table; others follow under the name that the run gave them.
NAMES = {
    c.STEP: "step time",
    c.EPOCH: "epoch time",
    TOKENS: "tokens per second",
    c.COMPUTE: "computation",
    c.COMMUNICATION: "communication",
    c.OVERLAPPED: "of it overlapped with computation",
    c.OVERLAPPED_SHARE: "overlapped share of communication",
    c.IDLE: "waiting for other ranks",
    c.ALL_TO_ALL: "all-to-all (tokens to experts and back), with waiting",
    c.ALL_TO_ALL_SHARE: "its share of the step",
    c.PERPLEXITY: "validation perplexity",
    "moe/drop_fraction": "tokens dropped",
    "moe/local_fraction": "tokens kept on their own node",
    "moe/load_max_over_mean": "load: busiest expert / mean",
    "moe/max_violation": "load: MaxVio",
    "moe/min_violation": "load: MinVio",
    "moe/load_entropy": "load: entropy, of its largest",
    "moe/nodes_per_token": "nodes that a token's experts are on",
    c.INTER: "bytes between nodes",
    c.INTRA: "bytes inside nodes",
    "valid/loss": "validation loss (nats a token)",
    "valid/unigram_perplexity": "perplexity of word frequencies alone",
}
RULE = (
    "A run's numbers are of the second half of its steps: routing is the mean of these; times, bytes and tokens a "
    "second are means over the middle half of these by step time; validation is the last. Bytes are what all ranks "
    "send in a step. Waiting is for other ranks to arrive; communication is without it, all-to-all with it."
)
MIXTURE = (
    "A mixture-of-experts layer holds many small networks (experts), spread over the workers of several nodes. A "
    "router sends every token to an expert, so tokens travel: fast inside a node, slowly between nodes. An expert has "
    "a limited number of slots a step; a token that finds none skips the layer."
)
INTRODUCTION = f"{MIXTURE} The variants differ in what the table of what was compared says, and in nothing else."
MEASURED = (
    "Each number is a mean over seeds, with the range below it. "
    + RULE
    + " Times are without the first {ignored}. Ratios are to "
    "{baseline}, each run to that of the same seed. Where a seed diverged, so did the variant."
)


@dataclass(frozen=True)
class ReportText:
    """What a report says around its figures and tables: `progress` (may be empty) and `setting` as HTML, the rest as
    text.
    """

    title: str
    introduction: str
    progress: str
    setting: str
    measured: str


NO_FIGURES = f"Figures are not drawn, because matplotlib is not installed: {INSTALL}. The tables hold all numbers."
REPORT = "report.html"


def check_report(output: Path) -> None:
    """Raises InputError where `write_report` would overwrite what it did not write."""
    check_output("--output", output / REPORT, MARKERS)


def write_report(data: Collection, output: Path) -> Path:
    """Writes `report.html`, whole or not at all; returns its path. Raises InputError: as `write_output`."""
    path = output / REPORT
    write_output("--output", path, render(data), MARKERS)
    return path


def render(data: Collection) -> str:
    """The report of a comparison as HTML."""
    ignored = f"{data.plan.warmup_steps_ignored} steps" if data.plan.warmup_steps_ignored != 1 else "step"
    return assemble(
        data,
        ReportText(
            f"Comparison: {', '.join(data.plan.variants)}",
            INTRODUCTION,
            _progress(data),
            _setting(data),
            MEASURED.format(ignored=ignored, baseline=data.plan.baseline),
        ),
    )


def assemble(data: Collection, words: ReportText, refresh_s: Optional[int] = None) -> str:
    """A report of any runs as HTML.

    Args:
        data: the runs.
        words: what is said around the figures and tables.
        refresh_s: seconds after which the page loads itself again; None: never.
    """
    plan, several = data.plan, len({run.run.seed for run in data.runs}) > 1
    facts = []
    for one in data.runs:  # a comparison starts its runs itself, on clusters of its own; other runs note theirs
        found = run_facts(one.folder, one.run.config, one.run.cluster if plan.file else None)
        command = {"command": f"pangu-sigma compare {plan.file}"} if plan.file else {}
        facts.append((one.run.name if several else one.run.variant, {**found, **command}))
    header = ["", "all runs" if len(data.runs) > 1 else "the run"]
    parts = [
        paragraph(words.introduction),
        words.progress,
        section("At a glance", _glance(data)),
        section("What was compared" if len(plan.variants) > 1 else "The run", words.setting),
        section("Facts", table(header, facts_table(facts), "words")),
    ]
    if can_draw():
        for heading, specs in all_figures(data):
            drawn = [figure(spec.title, spec.sentence, embedded(spec)) for spec in specs if spec.content]
            left_out = [f"{spec.title}: not drawn, because {spec.missing}." for spec in specs if not spec.content]
            grid = f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""
            parts.append(section(heading, grid, *(paragraph(text, "note") for text in left_out)))
    else:
        parts.append(section("Figures", paragraph(NO_FIGURES, "note")))
    numbers = section("All numbers", paragraph(words.measured, "note"), *_numbers(data))
    return page(words.title, "\n".join([*parts, numbers]), refresh_s)


def _progress(data: Collection) -> str:
    finished, planned = len(data.runs), len(data.plan.runs)
    unfinished = f"{finished} of {planned} runs are finished; this report shows those." if finished < planned else ""
    return "\n".join(paragraph(note, "note") for note in (unfinished, diverged_note(data), data.warning()) if note)


def diverged_note(data: Collection) -> str:
    """Which runs diverged, as a sentence; empty if none did."""
    names = [
        f"{one.run.name} (step {one.records[-1]['progress/step']})" for one in data.runs if one.diverged and one.records
    ]
    return f"Diverged, so that they have no perplexity: {', '.join(names)}." if names else ""


def _glance(data: Collection) -> str:
    """The two things that matter, how long and how good, and what explains them."""
    quality, time = data.plan.quality_phase, data.plan.time_phase
    columns = ((time, c.STEP), (quality, c.PERPLEXITY), (time, c.INTER))
    rows, several = [], len(data.plan.variants) > 1
    for variant in data.plan.variants:
        cells = [variant]
        for phase, name in columns:
            cells.append(with_range(name, _spread(data.table, phase, variant, name)))
            cells += [with_range(name, _spread(data.ratios, phase, variant, name), _ratio)] if several else []
        rows.append(cells)
    ratio = [f"/ {data.plan.baseline}'s"] if several else []
    return table(["variant", *(word for _, name in columns for word in (NAMES[name], *ratio))], rows)


def _setting(data: Collection) -> str:
    runs = data.plan.runs
    sentences = [f"Base configuration: {data.plan.base}."]
    for phase in data.plan.phases:
        own = [run for run in runs if run.phase == phase]
        name = "" if phase == SINGLE_PHASE else f"Phase {phase}: "
        cluster, config = own[0].cluster, own[0].config
        places = " or ".join(dict.fromkeys(cluster_text(run.config, run.cluster) for run in own))
        if cluster.nodes > 1:
            places += f"; links between nodes {f'limited to {cluster.rate}' if cluster.rate else 'not limited'}"
        steps, seeds = sorted({run.config.train.steps for run in own}), sorted({run.seed for run in own})
        sentences.append(
            f"{name}{places}; {', '.join(map(str, steps))} steps of {tokens_per_step(config)} tokens; seeds "
            f"{', '.join(map(str, seeds))}."
        )
    first = [run for run in runs if run.seed == runs[0].seed and run.phase == runs[0].phase]
    common = set.intersection(*(set(run.overrides) for run in first))
    own_overrides = []
    for variant in data.plan.variants:
        found = next(run for run in runs if run.variant == variant).overrides
        texts = [text for text in found if text not in common and not text.startswith("train.seed=")]
        own_overrides.append([variant, ", ".join(texts) or "the base as it is"])
    return "\n".join(map(paragraph, sentences)) + table(["variant", "what makes it different"], own_overrides, "words")


def _numbers(data: Collection) -> List[str]:
    """One table a phase: a row a metric, a column a variant."""
    parts = []
    for phase in data.plan.phases:
        own = data.table.get(phase, {})
        if not own:
            continue
        if phase != SINGLE_PHASE:
            parts.append(f"<h3>{phase} runs</h3>")
        found = {name for values in own.values() for name in values}
        names = [name for name in NAMES if name in found] + sorted(found - set(NAMES))
        rows = [
            [NAMES.get(name, name), *(with_range(name, own[variant].get(name)) for variant in own)] for name in names
        ]
        parts.append(table(["", *own], rows))
    return parts


def _spread(
    tables: Mapping[str, Dict[str, Dict[str, Spread]]], phase: str, variant: str, name: str
) -> Optional[Spread]:
    return tables.get(phase, {}).get(variant, {}).get(name)


def _ratio(name: str, value: float) -> str:
    return f"{value:.3f}"
