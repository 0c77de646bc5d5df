"""What training says on the terminal: a line a step, in 79 columns; at the end where things are and what to type
next.
"""

import shlex
from pathlib import Path
from typing import Any, List, Mapping, Sequence

from pangu_sigma.checkpoint.folders import finished
from pangu_sigma.metrics.perplexity import DIVERGED, is_usable, usable_perplexity
from pangu_sigma.metrics.window import STEP, TOKENS
from pangu_sigma.runtime.run_folder import CHECKPOINTS
from pangu_sigma.runtime.strict_json import number
from pangu_sigma.runtime.text_table import WIDTH

# Of a run on a device its own; else the process's. The first that a step has.
MEMORY = ("memory/peak(B)", "memory/device_peak(B)", "memory/process_peak(B)")
_SUFFIXES = ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"), (1e18, "E"))


def console_line(record: Mapping[str, Any], steps: int, window: Mapping[str, Any]) -> str:
    """One line of at most 79 columns for a step: loss, validation where it was measured, norm of the gradient, tokens a
    second, seconds a step, and memory.

    Every number has at most five characters. Where that is not enough, since steps are counted in millions, their total
    gives way, then a blank of two.

    Args:
        record: the step's metrics.
        steps: of the whole run.
        window: the run's numbers so far, as `measured` has them: of single steps they jump, and every other place
            shows these.
    """
    step, loss = record["progress/step"], record["loss/task"]
    parts = [f"loss {_short(loss, 4) if is_usable(loss) else DIVERGED}"]
    if "valid/perplexity" in record:
        perplexity = usable_perplexity(record["valid/perplexity"])
        parts.append(f"ppl {DIVERGED if perplexity is None else _short(perplexity, 4)}")
    if "optim/grad_norm" in record:
        parts.append(f"norm {_short(record['optim/grad_norm'])}")
    if TOKENS in window:
        parts.append(f"{_short(window[TOKENS])} tok/s")
    if STEP in window:
        parts.append(f"{_short(window[STEP])} s")
    memory = next((record[name] for name in MEMORY if name in record), None)
    if memory is not None:
        parts.append(f"{_short(memory / 1e9)} GB")
    whole, alone = f"step {step:>{len(str(steps))}}/{steps}", f"step {step}"
    lines = ["  ".join([whole, *parts]), "  ".join([alone, *parts]), " ".join([alone, *parts])]
    return next((line for line in lines if len(line) <= WIDTH), lines[-1].replace(DIVERGED, "-"))


def next_lines(output_dir: str, domains: Sequence[str]) -> List[str]:
    """Where the run's newest checkpoint is, and three commands that take the run.

    Args:
        output_dir: the run's folder. domains: of its data.
    """
    saved = finished(Path(output_dir) / CHECKPOINTS)
    where = saved[-1][1] if saved else "none was written (checkpoint.interval)"
    run = shlex.quote(output_dir)
    lines = [f"checkpoint: {where}", "next:", f"  pangu-sigma report {run}"]
    if saved:
        lines += [
            f"  pangu-sigma eval {run}",
            f'  pangu-sigma generate {run} --domain {shlex.quote(domains[0])} --prompt "..."',
        ]
    return lines


def _short(value: Any, digits: int = 3) -> str:
    """A number in at most five characters, with about `digits` significant ones: 2e-9, 0.012, 5.231, 145, 12.3k. A dash
    for what is no finite number.
    """
    found = number(value)
    if found is None:
        return "-"
    size = abs(found)
    if size < 1e-3:
        return f"{size:.0e}".replace("e-0", "e-") if size > 1e-99 else "0"
    if size < 1:
        return f"{found:.3f}"
    for decimals in (3, 2, 1, 0):
        if len(text := f"{size:.{decimals}f}") <= digits + 1:
            return text
    for scale, suffix in _SUFFIXES:
        if round(size / scale) < 1000:
            text = f"{size / scale:.1f}"
            return (text if len(text) <= 4 else f"{size / scale:.0f}") + suffix
    return f"{size:.0e}".replace("e+", "e")
