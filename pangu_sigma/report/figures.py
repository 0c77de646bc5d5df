"""What the report draws. Each figure comes with a sentence on what it shows; one without data says why not."""

import math
from html import escape
from statistics import fmean
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from pangu_sigma.metrics.perplexity import is_usable, usable_perplexity
from pangu_sigma.report import collect as c
from pangu_sigma.report.collect import CollectedRun, Collection
from pangu_sigma.report.numbers import seconds, significant, size, time_unit
from pangu_sigma.report.page import figure, paragraph
from pangu_sigma.report.svg import GREY, Bar, Curve, Segment, bars, curves, heat_map, legend

HEAT_COLUMNS = 40
MOST_POINTS = 180  # of a curve of losses; more, on 360 units, would be noise
EVEN = 0.3  # strength of the colour of an expert that gets its even share: what lies below and above can both be seen
CAUSES = (
    "comm/all_to_all/inter_node(B)",
    "comm/gradient/inter_node(B)",
    "comm/all_to_all/intra_node(B)",
    "comm/gradient/intra_node(B)",
)
_CAUSE_NAMES = ("tokens, between nodes", "gradients, between nodes", "tokens, inside nodes", "gradients, inside nodes")
_CAUSE_COLOURS = (1, 5, 0, 2)
_LINKS = ((c.INTER, c.INTRA), ("between nodes", "inside nodes"), (1, 0))
_COSINES = (
    ("token_token_within", "tokens of the same expert", 0),
    ("token_token_across", "tokens of different experts", 1),
    ("token_gate", "token and gate weight", 2),
)


def all_figures(data: Collection) -> List[Tuple[str, List[str]]]:
    """Headings, each with its figures as HTML."""
    return [
        ("Time", [step_time(data), time_split(data)]),
        (
            "Quality",
            [
                training_loss(data),
                perplexity_over_steps(data),
                perplexity_over_time(data),
                capacity_against_perplexity(data),
            ],
        ),
        ("Traffic", [bytes_sent(data), bytes_by_link(data)]),
        ("Routing", [expert_assignment(data), cosine_histograms(data)]),
    ]


def step_time(data: Collection) -> str:
    title, rows = "Step time", []
    for number, variant in _variants(data, data.plan.time_phase, c.STEP):
        spread = data.table[data.plan.time_phase][variant][c.STEP]
        epoch = data.mean(data.plan.time_phase, variant, c.EPOCH)
        text = seconds(spread["mean"]) + (f" (epoch {seconds(epoch)})" if epoch else "")
        rows.append(
            Bar(variant, [Segment(spread["mean"], number, f"{variant}: {text}")], text, spread["min"], spread["max"])
        )
    if not rows:
        return _missing(title, "no run here has measured steps")
    return figure(
        title,
        "Mean time of an optimizer step, and in brackets of one pass over the training data at that pace; shorter is "
        "better. The whisker spans the seeds.",
        bars(rows, "step time by variant"),
    )


def time_split(data: Collection) -> str:
    """step = compute + communication + idle - overlapped, so the four pieces below add up to the step."""
    title, phase, rows = "Where a step's time goes", data.plan.time_phase, []
    names = ("computation", "both at once", "communication alone", "idle: waiting for other ranks")
    colours = (0, 2, 1, GREY)
    for _, variant in _variants(data, phase, c.COMPUTE):
        compute, communication, overlapped, idle = (
            data.mean(phase, variant, name) or 0.0 for name in (c.COMPUTE, c.COMMUNICATION, c.OVERLAPPED, c.IDLE)
        )
        pieces = (compute - overlapped, overlapped, communication - overlapped, idle)
        rows.append(_stacked(variant, pieces, names, colours, seconds))
    if not rows:
        return _missing(title, "no run here has split its time")
    return figure(
        title,
        "Mean over ranks: computing alone, computing while tokens or gradients travel (communication that costs "
        "nothing), waiting for what travels, and waiting for other ranks to arrive.",
        legend(list(zip(names, colours))) + bars(rows, "time split by variant"),
    )


def bytes_sent(data: Collection) -> str:
    title, phase, rows = "Bytes sent in a step", data.plan.time_phase, []
    by_cause = all(
        data.mean(phase, variant, name) is not None for name in CAUSES for _, variant in _variants(data, phase, c.INTER)
    )
    keys, names, colours = (CAUSES, _CAUSE_NAMES, _CAUSE_COLOURS) if by_cause else _LINKS
    for _, variant in _variants(data, phase, c.INTER):
        rows.append(_stacked(variant, [data.mean(phase, variant, key) or 0.0 for key in keys], names, colours, size))
    if not rows:
        return _missing(title, "no run here has counted bytes")
    kinds = "the kind of link" + (" and by cause" if by_cause else "")
    return figure(
        title,
        f"What all ranks send, by {kinds}. Links between nodes are the slow ones: what moves from the left of a bar to "
        "its right has moved to a fast link.",
        legend(list(zip(names, colours))) + bars(rows, "bytes sent by variant"),
    )


def bytes_by_link(data: Collection) -> str:
    title, phase, rows = "Bytes that each node's link carried", data.plan.time_phase, []
    nodes = [
        (f"node {node}", c.LINK.format(node=node), node)
        for node in range(max(run.cluster.nodes for run in data.plan.runs))
    ]
    for _, variant in _variants(data, phase, c.LINK.format(node=0)):
        rows.append(
            _stacked(
                variant,
                [data.mean(phase, variant, key) or 0.0 for _, key, _ in nodes],
                [name for name, *_ in nodes],
                [colour for *_, colour in nodes],
                size,
            )
        )
    if not rows:
        return _missing(title, "no run here was made on simulated nodes")
    return figure(
        title,
        "What each node sent to others in a whole run, as its network interface counted it: headers, joining and "
        "validation included.",
        legend([(name, colour) for name, _, colour in nodes]) + bars(rows, "bytes by link and variant"),
    )


def training_loss(data: Collection) -> str:
    title, found = "Training loss over steps", []
    for number, variant in enumerate(data.plan.variants):
        runs = data.of(data.plan.quality_phase, variant)
        by_step: Dict[int, List[float]] = {}
        for run in runs:
            for record in run.records:
                if is_usable(record.get("loss/task")):
                    by_step.setdefault(record["progress/step"], []).append(record["loss/task"])
        shared = [(step, fmean(losses)) for step, losses in sorted(by_step.items()) if len(losses) == len(runs)]
        count = min(MOST_POINTS, len(shared))
        parts = [shared[point * len(shared) // count : (point + 1) * len(shared) // count] for point in range(count)]
        if parts:
            steps, losses = zip(*([fmean(column) for column in zip(*part)] for part in parts))
            found.append(Curve(variant, number, steps, losses))
    if not found:
        return _missing(title, "no run here has written a loss")
    return figure(
        title,
        "Cross entropy in nats a token on the text that is trained on, without the routers' own losses; mean over "
        "seeds and, in a long run, over neighbouring steps.",
        legend([(curve.label, curve.colour) for curve in found], "curve")
        + curves(found, "optimizer steps", "loss", title),
    )


def perplexity_over_steps(data: Collection) -> str:
    return _perplexity(
        data,
        "Validation perplexity over steps",
        "optimizer steps",
        dict.fromkeys(data.plan.variants, 1.0),
        "How well each variant predicts text that it was not trained on, after the same number of steps and so of "
        "tokens; lower is better. The band spans the seeds.",
    )


def perplexity_over_time(data: Collection) -> str:
    steps = {variant: data.mean(data.plan.time_phase, variant, c.STEP) for variant in data.plan.variants}
    timed = {variant: step for variant, step in steps.items() if step}
    longest = max((step * max(_validations(data, variant), default=0) for variant, step in timed.items()), default=0.0)
    unit, scale = time_unit(longest)
    return _perplexity(
        data,
        "Validation perplexity over time",
        f"training time ({unit})",
        {v: step / scale for v, step in timed.items()},
        "The same curves over the time that the steps take (steps x mean step time): a variant with shorter steps "
        "is further left.",
    )


def _perplexity(data: Collection, title: str, x_title: str, scale: Mapping[str, float], sentence: str) -> str:
    found = []
    for number, variant in enumerate(data.plan.variants):
        by_step = _validations(data, variant)
        if by_step and variant in scale:
            steps = sorted(by_step)
            found.append(
                Curve(
                    variant,
                    number,
                    [step * scale[variant] for step in steps],
                    [fmean(by_step[step]) for step in steps],
                    [min(by_step[step]) for step in steps],
                    [max(by_step[step]) for step in steps],
                )
            )
    if not found:
        return _missing(title, "no run here was validated and timed")
    ruined = [
        variant
        for variant in data.plan.variants
        if any(run.diverged for run in data.of(data.plan.quality_phase, variant))
    ]
    sentence += f" Diverged, and not drawn from there on: {', '.join(ruined)}." if ruined else ""
    # Curves that fall from far above are cut off, so that their ends, which matter, can be told apart.
    top = max(1.5 * min(min(curve.low) for curve in found), 1.05 * max(curve.high[-1] for curve in found))
    if top < max(max(curve.high) for curve in found):
        sentence += f" Values above {significant(top, 3)}, those of the first steps, are cut off."
    else:
        top = math.inf
    drawing = curves(found, x_title, "perplexity", title, top)
    return figure(title, sentence, legend([(curve.label, curve.colour) for curve in found], "curve") + drawing)


def _validations(data: Collection, variant: str) -> Dict[int, List[float]]:
    """Perplexities by step, of the steps at which all of the variant's runs were validated."""
    found: Dict[int, List[float]] = {}
    runs = data.of(data.plan.quality_phase, variant)
    for run in runs:
        for record in run.records:
            perplexity = usable_perplexity(record.get(c.PERPLEXITY))
            if perplexity is not None:
                found.setdefault(record["progress/step"], []).append(perplexity)
    return {step: values for step, values in found.items() if len(values) == len(runs)}


def capacity_against_perplexity(data: Collection) -> str:
    title, phase, points = "Capacity against perplexity", data.plan.quality_phase, []
    for number, variant in _variants(data, phase, c.PERPLEXITY):
        capacity, spread = capacity_factor(data.of(phase, variant)[0]), data.table[phase][variant][c.PERPLEXITY]
        if capacity is not None and math.isfinite(spread["max"]):
            points.append(Curve(variant, number, [capacity], [spread["mean"]], [spread["min"]], [spread["max"]]))
    if len({curve.x[0] for curve in points}) < 2:
        return _missing(title, "the variants do not differ in capacity")
    return figure(
        title,
        "Slots kept for each expert, as a multiple of its even share of tokens, against the last validation "
        "perplexity. Fewer slots mean less to send and compute; tokens without a slot skip the experts. "
        "The whisker spans the seeds.",
        legend([(curve.label, curve.colour) for curve in points], "dot")
        + curves(points, "capacity factor", "perplexity", title),
    )


def capacity_factor(run: CollectedRun) -> Optional[float]:
    """Slots over even share: as configured, or as measured where the run chose it itself (`moe/capacity_factor`)."""
    measured = run.values.get("moe/capacity_factor")
    if measured is None and run.run.config.moe.capacity.mode == "factor":
        return run.run.config.moe.capacity.factor
    return measured


def expert_assignment(data: Collection) -> str:
    title, panels = "Which experts the tokens go to, over training", []
    for variant in data.plan.variants:
        runs = data.of(data.plan.quality_phase, variant)
        cells, ends = _shares(runs[0].records) if runs else ([], ("", ""))
        if cells:
            panels.append(f"<h4>{escape(variant)}</h4>" + heat_map(cells, ends, f"expert assignment of {variant}"))
    if not panels:
        return _missing(title, "no run here has experts")
    return figure(
        title,
        "One row an expert of the last sparse layer, training from left to right, first seed. The stronger the colour, "
        "the more of the tokens; rows of one even tone mean an even load, a few strong ones among pale ones mean that "
        "experts idle while others overflow.",
        "".join(panels),
    )


def _shares(records: Sequence[Mapping[str, Any]]) -> Tuple[List[List[float]], Tuple[str, str]]:
    """Strength of each expert (row) in each stretch of training (column), of the last layer; and names of both ends."""
    found = [(record["progress/step"], record[c.PER_EXPERT][-1]) for record in records if record.get(c.PER_EXPERT)]
    if not found:
        return [], ("", "")
    columns = min(HEAT_COLUMNS, len(found))
    cells: List[List[float]] = [[] for _ in found[0][1]]
    for column in range(columns):
        part = [counts for _, counts in found[column * len(found) // columns : (column + 1) * len(found) // columns]]
        total = sum(map(sum, part)) or 1.0
        for expert, row in enumerate(cells):
            row.append(min(1.0, EVEN * sum(counts[expert] for counts in part) * len(cells) / total))
    return cells, (f"step {found[0][0]}", f"step {found[-1][0]}")


def cosine_histograms(data: Collection) -> str:
    title, panels = "Angles between tokens, and between tokens and gates", []
    for variant in data.plan.variants:
        runs = [run for phase in data.plan.phases for run in data.of(phase, variant) if run.cosines]
        found = [
            _histogram(name, colour, runs[0].cosines[key])
            for key, name, colour in _COSINES
            if runs and key in runs[0].cosines
        ]
        if found:
            panels.append(f"<h4>{escape(variant)}</h4>" + curves(found, "cosine", "density", f"cosines of {variant}"))
    if not panels:
        return _missing(title, "no run here has left cosines.json")
    return figure(
        title,
        "Cosines of pairs (1: same direction, 0: unrelated). Where tokens of the same expert lie closer to each other "
        "than to the rest, the expert has a kind of token of its own.",
        legend([(name, colour) for _, name, colour in _COSINES], "curve") + "".join(panels),
    )


def _histogram(name: str, colour: int, histogram: Mapping[str, Sequence[float]]) -> Curve:
    """Counts as a density: a staircase of area 1."""
    edges, counts = histogram["edges"], histogram["counts"]
    total = sum(counts) or 1
    heights = [count / total / (right - left) for count, left, right in zip(counts, edges, edges[1:])]
    return Curve(
        name,
        colour,
        [edge for pair in zip(edges, edges[1:]) for edge in pair],
        [height for height in heights for _ in range(2)],
    )


# ---- helpers


def _variants(data: Collection, phase: str, metric: str) -> List[Tuple[int, str]]:
    """Variants that have the metric, with their colour's number."""
    return [
        (number, name) for number, name in enumerate(data.plan.variants) if data.mean(phase, name, metric) is not None
    ]


def _stacked(
    variant: str,
    values: Sequence[float],
    names: Sequence[str],
    colours: Sequence[int],
    show: Callable[[float], str],
) -> Bar:
    pieces = [
        Segment(max(value, 0.0), colour, f"{variant}, {name}: {show(value)}")
        for value, name, colour in zip(values, names, colours)
    ]
    return Bar(variant, pieces, show(sum(values)))


def _missing(title: str, reason: str) -> str:
    return paragraph(f"{title}: not drawn, because {reason}.", "note")
