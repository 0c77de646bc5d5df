"""What the report draws over training, or against it: curves, a variant each."""

import math
from dataclasses import replace
from statistics import fmean
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from pangu_sigma.metrics.perplexity import usable_perplexity
from pangu_sigma.report import collect as c
from pangu_sigma.report.collect import CollectedRun, Collection
from pangu_sigma.report.numbers import significant, size_unit, time_unit
from pangu_sigma.report.specs import Curve, Curves, FigureSpec
from pangu_sigma.runtime.strict_json import number

MOST_POINTS = 100  # of a curve of what every step measures; more, in the width of a column, would be noise
STEPS = "optimizer steps"
AVERAGED = "The mean over neighbouring steps is drawn."


class Measure(NamedTuple):
    """What every step measures, and how it is drawn.

    Attributes:
        name, title, sentence: of the figure.
        metric: its name in metrics.jsonl.
        y_label: of the axis, with the unit of `scale` times the metric.
        missing: why there is no figure, where no run has the metric.
        logarithmic, from_zero: of the axis.
        timed: it depends on the machine, so that the time phase has it, and steps that compile do not count.
    """

    name: str
    title: str
    metric: str
    y_label: str
    sentence: str
    missing: str
    scale: float = 1.0
    logarithmic: bool = False
    from_zero: bool = True
    timed: bool = False


LOSS = Measure(
    "training_loss",
    "Training loss over steps",
    "loss/task",
    "training loss (nats/token)",
    "Cross entropy on the text that is trained on, without the routers' own losses; lower is better.",
    "no run here has written a loss",
    logarithmic=True,
    from_zero=False,
)
GRADIENT_NORM = Measure(
    "gradient_norm",
    "Gradient norm over steps",
    "optim/grad_norm",
    "gradient norm",
    "Length of the gradient over all parameters, before it is clipped. Peaks warn of steps that do harm.",
    "no run here has written a gradient norm",
    logarithmic=True,
    from_zero=False,
)
LEARNING_RATE = Measure(
    "learning_rate",
    "Learning rate over steps",
    "optim/learning_rate",
    "learning rate",
    "As scheduled.",
    "no run here has written a learning rate",
)
SPEED = Measure(
    "tokens_per_second",
    "Tokens a second over steps",
    "throughput/tokens_per_second",
    "tokens/s",
    "Tokens that all ranks together train on in a second, without the steps that compile; higher is better.",
    "no run here has measured steps",
    timed=True,
)
DROPPED = Measure(
    "tokens_dropped",
    "Tokens dropped over steps",
    "moe/drop_fraction",
    "tokens dropped (%)",
    "Assignments that found no slot at their expert, of all; lower is better.",
    "no run here has experts",
    scale=100.0,
)
AT_HOME = Measure(
    "tokens_at_home",
    "Tokens kept on their own node over steps",
    "moe/local_fraction",
    "kept on own node (%)",
    "Assignments to an expert on the token's own node, of all that found a slot. What is kept needs no slow link.",
    "no run here has experts that are not on every node",
    scale=100.0,
)
BALANCE = Measure(
    "load_balance",
    "Load balance over steps",
    "moe/load_max_over_mean",
    "busiest expert / mean load",
    "Tokens of the busiest expert over the mean, before drops, mean over layers; 1 is an even load.",
    "no run here has experts",
    from_zero=False,
)


def over_steps(data: Collection, measure: Measure) -> FigureSpec:
    """The measure at every step, or as means over stretches of a long run."""
    phase = data.plan.time_phase if measure.timed else data.plan.quality_phase
    ignored = data.plan.warmup_steps_ignored if measure.timed else 0
    curves, averaged = [], False
    for place, variant in enumerate(data.plan.variants):
        steps, by_seed = shared_steps(data.of(phase, variant), measure.metric, ignored)
        if steps:
            averaged |= len(steps) > MOST_POINTS
            curves.append(_stretches(Curve(variant, place, steps, ()), by_seed, measure.scale))
    if not curves:
        return FigureSpec(measure.name, measure.title, missing=measure.missing)
    first = curves[0]  # stands for several that are the same, which would hide each other
    same = len(curves) > 1 and all(
        replace(one, label="", number=0) == replace(first, label="", number=0) for one in curves
    )
    if same:
        curves = [replace(first, label="all the same", number=0)]
    content = Curves(
        curves,
        STEPS,
        measure.y_label,
        logarithmic=measure.logarithmic,
        from_zero=measure.from_zero,
        measured=not averaged,
        hues=not same,
    )
    sentence = " ".join(filter(None, (measure.sentence, AVERAGED if averaged else "", seeds_note(curves, "band"))))
    return FigureSpec(measure.name, measure.title, sentence, content)


def shared_steps(runs: Sequence[CollectedRun], metric: str, ignored: int = 0) -> Tuple[List[int], List[List[float]]]:
    """Steps at which every run has a number, and at each of them the numbers of the runs.

    Args:
        runs: of one variant.
        metric: its name.
        ignored: first steps that do not count; a run that has no others is shown with them.
    """
    if not any(record["progress/step"] > ignored for run in runs for record in run.records):
        ignored = 0
    found: Dict[int, List[float]] = {}
    for run in runs:
        for record in run.records:
            value = record.get(metric)
            value = usable_perplexity(value) if metric == c.PERPLEXITY else number(value)
            if value is not None and (not ignored or record["progress/step"] > ignored):
                found.setdefault(record["progress/step"], []).append(value)
    steps = sorted(step for step, values in found.items() if len(values) == len(runs))
    return steps, [found[step] for step in steps]


def _stretches(curve: Curve, by_seed: Sequence[Sequence[float]], scale: float) -> Curve:
    """The curve with its values: of at most MOST_POINTS stretches of steps, mean over steps, and over seeds with their
    range.
    """
    steps, count = curve.x, min(MOST_POINTS, len(curve.x))
    bounds = [place * len(steps) // count for place in range(count + 1)]
    parts = [slice(start, end) for start, end in zip(bounds, bounds[1:])]
    values = [[scale * fmean(seed) for seed in zip(*by_seed[part])] for part in parts]
    return with_range(curve.label, curve.number, [fmean(steps[part]) for part in parts], values)


def with_range(label: str, place: int, x: Sequence[float], values: Sequence[Sequence[float]]) -> Curve:
    """The curve of the means of `values`, a list of seeds a point; with the range where there are several seeds."""
    several = len(values[0]) > 1
    low, high = ([end(of) for of in values] if several else [] for end in (min, max))
    return Curve(label, place, list(x), [fmean(of) for of in values], low, high)


def seeds_note(curves: Sequence[Curve], mark: str) -> str:
    """Says what the `mark` (band or whisker) is, if there is one."""
    return f"The {mark} spans the seeds." if any(curve.low for curve in curves) else ""


def perplexity_over_steps(data: Collection) -> FigureSpec:
    spec = FigureSpec(
        "perplexity_over_steps",
        "Validation perplexity over steps",
        "How well each variant predicts text that it was not trained on, after the same number of steps and so of "
        "tokens; lower is better.",
    )
    return _perplexity(data, spec, STEPS, dict.fromkeys(data.plan.variants, 1.0))


def perplexity_over_time(data: Collection) -> FigureSpec:
    steps = {variant: data.mean(data.plan.time_phase, variant, c.STEP) for variant in data.plan.variants}
    timed = {variant: step for variant, step in steps.items() if step}
    longest = max((step * max(_validations(data, variant)[0], default=0) for variant, step in timed.items()), default=0)
    unit, scale = time_unit(longest)
    spec = FigureSpec(
        "perplexity_over_time",
        "Validation perplexity over time",
        "The same curves over the time that the steps take (steps x mean step time): a variant with shorter steps "
        "is further left.",
    )
    return _perplexity(data, spec, f"training time ({unit})", {v: step / scale for v, step in timed.items()})


def _validations(data: Collection, variant: str) -> Tuple[List[int], List[List[float]]]:
    """Steps at which all of the variant's runs were validated, and their perplexities."""
    return shared_steps(data.of(data.plan.quality_phase, variant), c.PERPLEXITY)


def _perplexity(data: Collection, spec: FigureSpec, x_label: str, scale: Mapping[str, float]) -> FigureSpec:
    curves = []
    for place, variant in enumerate(data.plan.variants):
        steps, values = _validations(data, variant)
        if steps and variant in scale:
            curves.append(with_range(variant, place, [step * scale[variant] for step in steps], values))
    if not curves:
        return FigureSpec(spec.name, spec.title, missing="no run here was validated and timed")
    ruined = [
        variant
        for variant in data.plan.variants
        if any(run.diverged for run in data.of(data.plan.quality_phase, variant))
    ]
    sentences = [spec.sentence, seeds_note(curves, "band")]
    sentences += [f"Diverged, and not drawn from there on: {', '.join(ruined)}."] if ruined else []
    # Curves that fall from far above are cut off, so that their ends, which matter, can be told apart.
    top = max(2 * min(min(curve.y) for curve in curves), 1.05 * max((curve.high or curve.y)[-1] for curve in curves))
    if top < max(max(curve.high or curve.y) for curve in curves):
        sentences.append(f"Values above {significant(top, 3)}, those of the first steps, are cut off.")
    else:
        top = math.inf
    content = Curves(curves, x_label, "validation perplexity", top=top)
    return FigureSpec(spec.name, spec.title, " ".join(filter(None, sentences)), content)


def perplexity_against_step(data: Collection) -> FigureSpec:
    spec = FigureSpec(
        "perplexity_against_step",
        "Quality against step time",
        "The last validation perplexity against the mean time of a step: further left is faster, lower is better.",
        missing="no two variants here were validated and timed",
    )
    steps = _means(data, c.STEP)
    unit, scale = time_unit(max(steps.values(), default=0.0), milliseconds=True)
    return _trade_off(data, spec, f"step time ({unit})", {name: step / scale for name, step in steps.items()})


def perplexity_against_bytes(data: Collection) -> FigureSpec:
    spec = FigureSpec(
        "perplexity_against_bytes",
        "Quality against bytes between nodes",
        "The last validation perplexity against the bytes of tokens that all ranks send to other nodes in a step: "
        "further left is less, lower is better.",
        missing="no two variants here were validated and differ in the bytes of tokens that they send between nodes",
    )
    sent = _means(data, c.TOKENS_INTER)
    if len(set(sent.values())) < 2:
        return spec
    unit, scale = size_unit(max(sent.values()))
    return _trade_off(data, spec, f"tokens sent between nodes ({unit}/step)", {v: b / scale for v, b in sent.items()})


def _means(data: Collection, metric: str) -> Dict[str, float]:
    """Of the variants that have the metric in the phase that measures time."""
    found = {variant: data.mean(data.plan.time_phase, variant, metric) for variant in data.plan.variants}
    return {variant: value for variant, value in found.items() if value is not None}


def _trade_off(data: Collection, spec: FigureSpec, x_label: str, costs: Mapping[str, float]) -> FigureSpec:
    """A point a variant: its cost, as `costs` has it, and its last perplexity. `spec`: with the reason for none."""
    points = []
    for place, variant in enumerate(data.plan.variants):
        values = _last_perplexities(data, variant)
        if variant in costs and values:
            points.append(with_range(variant, place, [costs[variant]], [values]))
    if len(points) < 2:
        return spec
    sentences = [spec.sentence, f"No variant is both further left and lower than {', '.join(pareto_front(points))}."]
    sentences.append(seeds_note(points, "whisker"))
    content = Curves(points, x_label, "validation perplexity", joined=False)
    return FigureSpec(spec.name, spec.title, " ".join(filter(None, sentences)), content)


def pareto_front(points: Sequence[Curve]) -> List[str]:
    """Labels of those of the points (of one place each) that no other one beats: none is as far left and as low."""
    front: List[str] = []
    best = math.inf
    for _x, y, label in sorted((one.x[0], one.y[0], one.label) for one in points):
        if y < best:
            front.append(label)
            best = y
    return front


def _last_perplexities(data: Collection, variant: str) -> List[float]:
    """Of each seed; none where one has none that is finite."""
    runs = data.of(data.plan.quality_phase, variant)
    values = [run.values[c.PERPLEXITY] for run in runs if c.PERPLEXITY in run.values]
    return values if all(map(math.isfinite, values)) else []


def capacity_against_perplexity(data: Collection) -> FigureSpec:
    name, title, phase, points = "capacity", "Capacity against perplexity", data.plan.quality_phase, []
    for place, variant in enumerate(data.plan.variants):
        runs, values = data.of(phase, variant), _last_perplexities(data, variant)
        capacity = capacity_factor(runs[0]) if runs else None
        if capacity is not None and values:
            points.append(with_range(variant, place, [capacity], [values]))
    if len({curve.x[0] for curve in points}) < 2:
        return FigureSpec(name, title, missing="the variants do not differ in capacity")
    sentence = (
        "Slots kept for each expert, as a multiple of its even share of tokens, against the last validation "
        "perplexity. Fewer slots mean less to send and compute; tokens without a slot skip the experts."
    )
    content = Curves(points, "capacity factor", "validation perplexity", joined=False)
    return FigureSpec(name, title, f"{sentence} {seeds_note(points, 'whisker')}".strip(), content)


def capacity_factor(run: CollectedRun) -> Optional[float]:
    """Slots over even share: as configured, or as measured where the run chose it itself (`moe/capacity_factor`)."""
    measured = run.values.get("moe/capacity_factor")
    if measured is None and run.run.config.moe.capacity.mode == "factor":
        return run.run.config.moe.capacity.factor
    return measured
