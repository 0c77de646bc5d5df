"""The line of a step fits a terminal whatever the numbers are, and a run ends with commands that exist."""

import itertools
import math
import re
import shlex
import sys

import pytest

from pangu_sigma.cli.main import _parser
from pangu_sigma.train.console import MEMORY, console_line, next_lines

BAD = (math.nan, math.inf, -math.inf, None)
TINY, HUGE = sys.float_info.min, sys.float_info.max


def line(step=200, steps=200, loss=5.2314, ppl=(), norm=1.2345, rate=1234.5, seconds=0.8211, memory=1.23e9):
    record = {"progress/step": step, "loss/task": loss, "optim/learning_rate": 1e-3, "optim/grad_norm": norm}
    if ppl != ():
        record.update({"valid/loss": 5.0, "valid/perplexity": ppl})
    return console_line(
        {**record, MEMORY[-1]: memory}, steps, {"throughput/tokens_per_second": rate, "time/step(s)": seconds}
    )


def test_a_usual_line():
    assert line(ppl=269.04) == "step 200/200  loss 5.231  ppl 269.0  norm 1.23  1234 tok/s  0.821 s  1.23 GB"
    assert line(step=20) == "step  20/200  loss 5.231  norm 1.23  1234 tok/s  0.821 s  1.23 GB"


@pytest.mark.parametrize("value", BAD)
def test_a_run_that_diverged_shows_no_number_that_is_none(value):
    shown = line(loss=value, ppl=value, norm=value)
    assert shown.startswith("step 200/200  loss diverged  ppl diverged  norm -  1234 tok/s")


def test_what_was_not_measured_is_left_out():
    assert console_line({"progress/step": 3, "loss/task": None}, 10, {}) == "step  3/10  loss diverged"


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_that_of_the_device_where_there_is_one(name):
    record = {"progress/step": 1, "loss/task": 1.0, **dict.fromkeys(MEMORY, 9e9)}
    record = {key: value for key, value in record.items() if key not in MEMORY[: MEMORY.index(name)]}
    assert console_line({**record, name: 2e9}, 1, {}).endswith("  2.00 GB")


EXTREMES = (0.0, TINY, 1e-9, 0.00099951, 0.99951, 9.9996, 99.996, 999.96, 9999.6, 99_999.6, 999_999.6, 1e9, 1e15, HUGE)


@pytest.mark.parametrize("steps", [1, 200, 99_999, 9_999_999, 10**9])
def test_79_columns_with_all_metrics(steps):
    """All numbers as large as they can be; each of them as every other; those of runs that diverged."""
    for value in (*EXTREMES, *BAD):
        text = line(steps, steps, value, value, value, value, value, value or 0.0)
        assert len(text) <= 79, text
        assert len(re.findall(r"loss|ppl|norm|tok/s| s\b|GB", text)) == 6, text
    for values in itertools.product((TINY, 9999.6, 99_999.6, None), repeat=4):
        text = line(steps, steps, *values, 99_999.6, 99_999.6e9)
        assert len(text) <= 79, text


@pytest.mark.parametrize("loss", [-0.5, 10.826, 709.0])
def test_losses_have_their_sign_and_size(loss):
    shown = float(line(loss=loss).split("loss ")[1].split()[0])
    assert shown == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("value", [v for v in EXTREMES if 1e-3 < v < 1e15])
def test_a_short_number_is_that_number(value):
    text = line(norm=value).split("norm ")[1].split()[0]
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1.0)
    assert float(text.rstrip("kMGT")) * scale == pytest.approx(value, rel=5e-2 if value < 1 else 5e-3)


@pytest.mark.parametrize("folder", ["run", "a run/with blanks"])
def test_a_run_ends_with_its_checkpoint_and_what_to_type_next(tmp_path, folder):
    run = tmp_path / folder
    (run / "checkpoints" / "step_20").mkdir(parents=True)
    (run / "checkpoints" / "step_20" / "manifest.json").write_text("{}")
    first, _, *commands = next_lines(str(run), ["en", "zh"])
    assert first == f"checkpoint: {run / 'checkpoints' / 'step_20'}" and len(commands) == 3
    for command in commands:  # each is one of the program's, and names the run
        program, *words = shlex.split(command)
        assert program == "pangu-sigma" and str(run) in words
        _parser().parse_args(words)


def test_a_run_without_checkpoints_says_so(tmp_path):
    lines = next_lines(str(tmp_path), ["en"])
    assert lines[0] == "checkpoint: none was written (checkpoint.interval)"
    assert lines[2:] == [f"  pangu-sigma report {shlex.quote(str(tmp_path))}"]
