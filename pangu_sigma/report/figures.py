"""What the report draws. Each figure comes with a sentence on what it shows; one without data says why not."""

import math
from statistics import fmean
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

from pangu_sigma.report import collect as c
from pangu_sigma.report import curves
from pangu_sigma.report.collect import Collection
from pangu_sigma.report.numbers import seconds, size, size_unit, time_unit
from pangu_sigma.report.specs import Bar, Bars, Curve, Curves, FigureSpec, HeatMap, HeatMaps, Panels

HEAT_COLUMNS = 40
MOST_LOAD = 4.0  # the highest end of the colour bar, in even loads: above it differences matter little
_WAITS = ("computation", "waiting for tokens", "waiting for gradients", "waiting for the rest")
_PIECES = ("computation", "both at once", "communication alone", "idle: waiting for others")
CAUSES = (
    c.TOKENS_INTER,
    "comm/gradient/inter_node(B)",
    "comm/all_to_all/intra_node(B)",
    "comm/gradient/intra_node(B)",
)
_CAUSE_NAMES = ("tokens, between nodes", "gradients, between nodes", "tokens, inside nodes", "gradients, inside nodes")
_LINKS = ((c.INTER, c.INTRA), ("between nodes", "inside nodes"))
_COSINES = (
    ("token_token_within", "tokens of the same expert"),
    ("token_token_across", "tokens of different experts"),
    ("token_gate", "token and gate weight"),
)


def all_figures(data: Collection) -> List[Tuple[str, List[FigureSpec]]]:
    """Headings, each with its figures."""
    return [
        ("Time", [step_time(data), time_by_cause(data), time_split(data), curves.over_steps(data, curves.SPEED)]),
        (
            "Quality",
            [
                curves.over_steps(data, curves.LOSS),
                curves.perplexity_over_steps(data),
                curves.perplexity_over_time(data),
                curves.perplexity_against_step(data),
                curves.perplexity_against_bytes(data),
                curves.capacity_against_perplexity(data),
            ],
        ),
        ("Traffic", [bytes_sent(data), bytes_by_link(data)]),
        (
            "Routing",
            [
                *(curves.over_steps(data, one) for one in (curves.DROPPED, curves.AT_HOME, curves.BALANCE)),
                expert_assignment(data),
                cosine_histograms(data),
            ],
        ),
        ("Optimizer", [curves.over_steps(data, one) for one in (curves.GRADIENT_NORM, curves.LEARNING_RATE)]),
    ]


def step_time(data: Collection) -> FigureSpec:
    name, title, phase = "step_time", "Step time", data.plan.time_phase
    spreads = [(place, variant, data.table[phase][variant][c.STEP]) for place, variant in _having(data, phase, c.STEP)]
    if not spreads:
        return FigureSpec(name, title, missing="no run here has measured steps")
    unit, scale = time_unit(max(spread["max"] for *_, spread in spreads), milliseconds=True)
    bars, several, epochs = [], False, False
    for place, variant, spread in spreads:
        epoch = data.mean(phase, variant, c.EPOCH)
        text = seconds(spread["mean"]) + (f" (epoch {seconds(epoch)})" if epoch else "")
        ranged = spread["seeds"] > 1
        several, epochs = several or ranged, epochs or bool(epoch)
        ends = (spread["min"] / scale, spread["max"] / scale) if ranged else (None, None)
        bars.append(Bar(variant, [spread["mean"] / scale], text, place, *ends))
    sentence = "Mean time of an optimizer step" + (
        ", and in brackets of one pass over the training data at that pace; shorter is better."
        if epochs
        else "; shorter is better."
    )
    sentence += " The whisker spans the seeds." if several else ""
    return FigureSpec(name, title, sentence, Bars(bars, f"step time ({unit})"))


def time_split(data: Collection) -> FigureSpec:
    """step = compute + communication + idle - overlapped, so the four pieces below add up to the step."""
    name, title, phase, rows = "time_split", "Where a step's time goes", data.plan.time_phase, []
    for _, variant in _having(data, phase, c.COMPUTE):
        compute, communication, overlapped, idle = (
            data.mean(phase, variant, metric) or 0.0 for metric in (c.COMPUTE, c.COMMUNICATION, c.OVERLAPPED, c.IDLE)
        )
        rows.append((variant, [compute - overlapped, overlapped, communication - overlapped, idle]))
    if not rows:
        return FigureSpec(name, title, missing="no run here has split its time")
    unit, scale = time_unit(max(sum(values) for _, values in rows), milliseconds=True)
    return FigureSpec(
        name,
        title,
        "Mean over ranks: computing alone, computing while tokens or gradients travel (communication that costs "
        "nothing), waiting for what travels, and waiting for other ranks to arrive.",
        Bars(_stacked(rows, scale, seconds), f"time of a step ({unit})", _PIECES, "time"),
    )


def time_by_cause(data: Collection) -> FigureSpec:
    """step = compute + what computation does not hide of each cause's communication and waiting."""
    name, title, phase, bars = "time_by_cause", "What a step waits for", data.plan.time_phase, []
    found = _having(data, phase, *(f"time/{cause}(s)" for cause in ("all_to_all", "gradient")))
    rows = [(place, variant, _waits(data, phase, variant)) for place, variant in found]
    if not rows:
        return FigureSpec(name, title, missing="no run here has exchanged anything")
    unit, scale = time_unit(max(data.table[phase][variant][c.STEP]["max"] for _, variant, _ in rows), milliseconds=True)
    several = False
    for place, variant, values in rows:
        spread = data.table[phase][variant][c.STEP]
        several = several or spread["seeds"] > 1
        shown = [max(value, 0.0) / scale for value in values]  # a piece that rounding made negative is none
        least, most = min(spread["min"] / scale, sum(shown)), max(spread["max"] / scale, sum(shown))
        ends = (least, most) if spread["seeds"] > 1 else (None, None)
        bars.append(Bar(variant, shown, seconds(spread["mean"]), place, *ends))
    return FigureSpec(
        name,
        title,
        "Mean over ranks: computation, and what it does not hide of the all-to-all that moves tokens, of the sums of "
        "gradients, and of all else that ranks exchange, waiting for each other included."
        + (" The whisker spans the seeds." if several else ""),
        Bars(bars, f"time of a step ({unit})", _WAITS, "time"),
    )


def _waits(data: Collection, phase: str, variant: str) -> List[float]:
    """Seconds of a step: of computation, and those that each cause adds to it."""
    mean = {name: data.mean(phase, variant, name) or 0.0 for name in (c.STEP, c.COMPUTE)}
    added = []
    for cause in ("all_to_all", "gradient"):  # a cause's time has its waiting in it
        whole, hidden = (data.mean(phase, variant, f"time/{cause}{part}(s)") or 0.0 for part in ("", "/overlapped"))
        added.append(whole - hidden)
    return [mean[c.COMPUTE], *added, mean[c.STEP] - mean[c.COMPUTE] - sum(added)]


def bytes_sent(data: Collection) -> FigureSpec:
    name, title, phase = "bytes_sent", "Bytes sent in a step", data.plan.time_phase
    variants = [variant for _, variant in _having(data, phase, c.INTER, c.INTRA)]  # on one node nothing is between
    by_cause = all(any(data.mean(phase, variant, cause) is not None for cause in CAUSES) for variant in variants)
    keys, names = (CAUSES, _CAUSE_NAMES) if by_cause else _LINKS
    rows = [(variant, [data.mean(phase, variant, key) or 0.0 for key in keys]) for variant in variants]
    if not rows:
        return FigureSpec(name, title, missing="no run here has counted bytes")
    if not any(map(sum, (values for _, values in rows))):
        return FigureSpec(name, title, missing="a single rank sends nothing")
    unit, scale = size_unit(max(sum(values) for _, values in rows))
    kinds = "the kind of link" + (" and by cause" if by_cause else "")
    return FigureSpec(
        name,
        title,
        f"What all ranks send, by {kinds}. Links between nodes are the slow ones: what moves from the left of a bar to "
        "its right has moved to a fast link.",
        Bars(_stacked(rows, scale, size), f"sent in a step ({unit})", names, "bytes"),
    )


def bytes_by_link(data: Collection) -> FigureSpec:
    name, title, phase = "bytes_by_link", "Bytes that each node's link carried", data.plan.time_phase
    nodes, sent = max(run.cluster.nodes for run in data.plan.runs), []
    for place, variant in _having(data, phase, c.LINK.format(node=0)):
        for node in range(nodes):
            value = data.mean(phase, variant, c.LINK.format(node=node)) or 0.0
            sent.append((f"{variant}, node {node}", value, place))
    if not sent:
        return FigureSpec(name, title, missing="no run here was made on simulated nodes")
    unit, scale = size_unit(max(value for _, value, _ in sent))
    return FigureSpec(
        name,
        title,
        "What each node sent to others in a whole run, as its network interface counted it: headers, joining and "
        "validation included.",
        Bars([Bar(label, [value / scale], size(value), place) for label, value, place in sent], f"sent ({unit})"),
    )


def expert_assignment(data: Collection) -> FigureSpec:
    name, title, maps = "expert_assignment", "Which experts the tokens go to, over training", []
    for variant in data.plan.variants:
        runs = data.of(data.plan.quality_phase, variant)
        found = load_map(variant, runs[0].records) if runs else None
        maps += [found] if found else []
    if not maps:
        return FigureSpec(name, title, missing="no run here has experts")
    most = max(value for one in maps for row in one.cells for value in row)
    return FigureSpec(
        name,
        title,
        "One row an expert of the last sparse layer, training from left to right, first seed. White is an even load, "
        "brown is more, violet is less: where rows are of strong colours, experts idle while others overflow.",
        HeatMaps(maps, curves.STEPS, "expert", "tokens / even load", top=min(MOST_LOAD, max(2.0, math.ceil(most)))),
    )


def load_map(variant: str, records: Sequence[Mapping[str, Any]]) -> Optional[HeatMap]:
    """Load of each expert (row) of the last layer in each stretch of training (column), over an even load; None where
    there are no experts.

    Args:
        variant: its name.
        records: of a run, one a step.
    """
    found = [(record["progress/step"], record[c.PER_EXPERT][-1]) for record in records if record.get(c.PER_EXPERT)]
    if not found:
        return None
    count = min(HEAT_COLUMNS, len(found))
    cells: List[List[float]] = [[] for _ in found[0][1]]
    bounds = [column * len(found) // count for column in range(count + 1)]
    for start, end in zip(bounds, bounds[1:]):
        part = [counts for _, counts in found[start:end]]
        total = sum(map(sum, part)) or 1.0
        for expert, row in enumerate(cells):
            row.append(sum(counts[expert] for counts in part) * len(cells) / total)
    return HeatMap(variant, cells, [float(found[start][0] - 1) for start in bounds[:-1]] + [float(found[-1][0])])


def cosine_histograms(data: Collection) -> FigureSpec:
    name, title, panels = "cosines", "Angles between tokens, and between tokens and gates", []
    for variant in data.plan.variants:
        runs = [run for phase in data.plan.phases for run in data.of(phase, variant) if run.cosines]
        found = [
            histogram(label, place, runs[0].cosines[key])
            for place, (key, label) in enumerate(_COSINES)
            if runs and key in runs[0].cosines
        ]
        if found:
            panels.append((variant, Curves(found, "cosine", "density", False, True, measured=False, hues=False)))
    if not panels:
        return FigureSpec(name, title, missing="no run here has left cosines.json")
    return FigureSpec(
        name,
        title,
        "Cosines of pairs (1: same direction, 0: unrelated). Where tokens of the same expert lie closer to each other "
        "than to the rest, the expert has a kind of token of its own.",
        Panels(panels),
    )


def histogram(label: str, place: int, counted: Mapping[str, Sequence[float]]) -> Curve:
    """Counts as a density, whose sum over bins times their widths is 1, at the middle of each bin.

    Args:
        label: of its curve.
        place: of its pattern.
        counted: `edges` of bins, and `counts` in them.
    """
    edges, counts = counted["edges"], counted["counts"]
    total, bins = sum(counts) or 1, list(zip(edges, edges[1:]))
    heights = [count / total / (right - left) for count, (left, right) in zip(counts, bins)]
    return Curve(label, place, [fmean(both) for both in bins], heights)


def _having(data: Collection, phase: str, *metrics: str) -> List[Tuple[int, str]]:
    """Variants that have one of the metrics, each with its place among all, which gives its colour."""
    return [
        (place, name)
        for place, name in enumerate(data.plan.variants)
        if any(data.mean(phase, name, metric) is not None for metric in metrics)
    ]


def _stacked(rows: Sequence[Tuple[str, List[float]]], scale: float, show: Callable[[float], str]) -> List[Bar]:
    """Bars of several pieces. A piece that rounding made negative is none."""
    return [Bar(label, [max(value, 0.0) / scale for value in values], show(sum(values))) for label, values in rows]
