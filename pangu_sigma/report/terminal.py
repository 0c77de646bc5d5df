"""A run in a terminal of 80 columns, as plain text: how far, how good, how fast, where the time goes, how even the load
is.

Loss and validation are the last; all that is measured is of the second half of the steps so far (see
`pangu_sigma.metrics.window`).
"""

import sys
import time
from typing import Any, List, Mapping, Optional, Sequence, TextIO

from pangu_sigma.config.derived import router_names
from pangu_sigma.metrics.perplexity import DIVERGED, usable_perplexity
from pangu_sigma.metrics.window import TOKENS, measured, window
from pangu_sigma.report import collect as c
from pangu_sigma.report.folder import RunFolder, RunState
from pangu_sigma.report.numbers import percent, seconds, significant, size
from pangu_sigma.runtime.strict_json import number
from pangu_sigma.runtime.text_table import WIDTH, display_width

BAR = 56  # marks of a bar, and most experts of a line that have a mark each
REFRESH_S = 2.0
MOST_LAYERS = 12
_CLEAR = "\x1b[H\x1b[J"
# Marks of an expert by its load over the mean: below a tenth, a half, and so on; the last is for everything above.
_LOADS = ((0.1, "_"), (0.5, "."), (0.9, "-"), (1.1, "="), (1.5, "+"), (2.0, "#"))
_MOST = "@"


def watch(folder: str, output: Optional[TextIO] = None) -> None:
    """Shows a run until it is finished: in a terminal again and again, else once.

    Args:
        folder: the run folder.
        output: where to print; None: standard output.

    Raises:
        InputError: `folder` is not one of a run.
        KeyboardInterrupt: that is how one leaves an unfinished run.
    """
    stream = output or sys.stdout
    run = RunFolder(folder)
    state = run.read()
    if not stream.isatty():
        print(view(state, time.time()), file=stream, flush=True)
        return
    while True:
        print(_CLEAR + view(state, time.time()), file=stream, flush=True)
        if state.finished:
            return
        time.sleep(REFRESH_S)
        state = run.read()


def view(state: RunState, now_s: float) -> str:
    """The run as lines of at most 79 columns. `now_s`: seconds since 1970, to say how old the last line is."""
    moe, folder = state.config.moe, str(state.folder)
    if state.finished:
        age = DIVERGED if state.diverged else "finished"
    elif state.records:
        age = f"last line {seconds(max(0.0, round(now_s - state.written_s)))} ago"
    else:
        age = "nothing written yet"
    lines = [
        _end_of(folder),
        f"{router_names(state.config)}, {moe.num_experts} experts a sparse layer; {age}",
        "",
    ]
    if not state.records:
        return "\n".join([*lines, f"no step of {state.steps} yet: the first one waits for the compiler"])
    now, steps = measured(state.records), len(window(state.records))
    lines += [
        _steps(state, now),
        *_losses(state.records[-1]),
        *_validation(state.records),
        *_speed(now, steps),
        *_time_split(now),
        *_bytes(now),
        *_routing(now),
        *_loads(now),
    ]
    return "\n".join(line[:WIDTH].rstrip() for line in lines)


def _end_of(folder: str) -> str:
    """A path, of which the end is shown where it is too wide: there the names differ."""
    end = folder
    while display_width(end) > WIDTH - 3 * (end != folder):
        end = end[1:]
    return folder if end == folder else "..." + end


def _steps(state: RunState, now: Mapping[str, Any]) -> str:
    done = min(1.0, state.step / state.steps)
    left = 0 if state.finished else state.steps - state.step
    pace = now.get(c.STEP)
    eta = f", {seconds(left * pace)} left at this pace" if left > 0 and pace is not None else ""
    marks = round(done * 20)
    return f"step      {state.step:,} / {state.steps:,}  [{'#' * marks}{'.' * (20 - marks)}] {done:.0%}{eta}"


def _losses(last: Mapping[str, Any]) -> List[str]:
    names = [name for name in ("task", "aux", "locality", "total") if f"loss/{name}" in last]
    shown = [
        f"{name} {DIVERGED if value is None else f'{value:.4g}'}"
        for name in names
        for value in [number(last[f"loss/{name}"])]
    ]
    others = (
        ("optim/learning_rate", "learning rate"),
        ("optim/grad_norm", "gradient norm"),
        ("optim/skipped_steps", "skipped steps"),
    )
    values = [(word, number(last.get(name))) for name, word in others]
    more = [f"{word} {value:.3g}" for word, value in values if value is not None and (value or word != "skipped steps")]
    return ["loss      " + "  ".join(shown)] * bool(shown) + ["          " + "  ".join(more)] * bool(more)


def _validation(records: Sequence[Mapping[str, Any]]) -> List[str]:
    found = [
        (record["progress/step"], usable_perplexity(record[c.PERPLEXITY]))
        for record in records
        if c.PERPLEXITY in record
    ]
    if not found:
        return []
    parts = [
        f"perplexity {DIVERGED if value is None else significant(value)} at step {step:,}" for step, value in found[-1:]
    ]
    finite = [(value, step) for step, value in found if value is not None]
    if len(found) > 1 and finite:
        value, step = min(finite)
        parts.append(f"best {significant(value)} at step {step:,}")
    return ["valid     " + "  ".join(parts)]


def _speed(now: Mapping[str, Any], steps: int) -> List[str]:
    if TOKENS not in now or c.STEP not in now:
        return []
    return [f"speed     {significant(now[TOKENS])} tokens/s, {seconds(now[c.STEP])} a step (of the last {steps} steps)"]


def _time_split(now: Mapping[str, Any]) -> List[str]:
    """The four pieces that a step is made of; see pangu_sigma.train.metrics."""
    if not all(name in now for name in (c.COMPUTE, c.COMMUNICATION, c.OVERLAPPED, c.IDLE)):
        return []
    compute, communication, overlapped, idle = (
        now[name] for name in (c.COMPUTE, c.COMMUNICATION, c.OVERLAPPED, c.IDLE)
    )
    pieces = [max(piece, 0.0) for piece in (compute - overlapped, overlapped, communication - overlapped, idle)]
    whole = sum(pieces) or 1.0
    ends = [round(BAR * sum(pieces[:count]) / whole) for count in range(5)]
    bar = "".join(mark * (end - start) for mark, start, end in zip("=#-.", ends, ends[1:]))
    names = ("= compute", "# both", "- communicate", ". wait")
    return [
        f"time      [{bar}]",
        "          " + "  ".join(f"{name} {piece / whole:.0%}" for name, piece in zip(names, pieces)),
    ]


def _bytes(now: Mapping[str, Any]) -> List[str]:
    """Of the links that the run has."""
    sent = [(now[name], where) for name, where in ((c.INTRA, "inside"), (c.INTER, "between")) if name in now]
    text = ", ".join(f"{size(bytes_sent)} {where} nodes" for bytes_sent, where in sent)
    return [f"bytes     {text} a step"] if any(bytes_sent for bytes_sent, _ in sent) else []


def _routing(now: Mapping[str, Any]) -> List[str]:
    names = (("moe/drop_fraction", "dropped"), ("moe/local_fraction", "kept on own node"))
    parts = [f"{word} {percent(now[name])}" for name, word in names if name in now]
    parts += [f"busiest {now['moe/load_max_over_mean']:.2f} x mean"] if "moe/load_max_over_mean" in now else []
    parts += [f"capacity {now['moe/capacity_factor']:.2f}"] if "moe/capacity_factor" in now else []
    return ["tokens    " + "  ".join(parts)] if parts else []


def _loads(now: Mapping[str, Any]) -> List[str]:
    """A line a sparse layer, a mark an expert; of many experts, a mark for the busiest of some neighbours."""
    layers = now.get(c.PER_EXPERT)
    if not layers:
        return []
    lines, each = [], 1
    for layer, totals in list(enumerate(layers))[-MOST_LAYERS:]:
        each = -(-len(totals) // BAR)
        mean = sum(totals) / len(totals) or 1.0
        loads = [max(totals[first : first + each]) / mean for first in range(0, len(totals), each)]
        marks = [next((mark for limit, mark in _LOADS if load < limit), _MOST) for load in loads]
        lines.append(f"layer {layer:<3} [{''.join(marks)}]")
    left_out = [f"          ({len(layers) - MOST_LAYERS} lower layers are not shown)"] * (len(layers) > MOST_LAYERS)
    who = "a mark an expert" if each == 1 else f"a mark the busiest of {each} experts"
    scale = "  ".join([*(f"{mark} <{limit:g}" for limit, mark in _LOADS), f"{_MOST} more"])
    return [f"load      {who}, by its tokens over the mean:", f"          {scale}", *left_out, *lines]
