"""The view of a run in a terminal: what it says of numbers that are known, and that it fits."""

import io
import re

import pytest

from pangu_sigma.cli.main import main
from pangu_sigma.report import terminal
from pangu_sigma.report.folder import RunFolder
from pangu_sigma.runtime.text_table import display_width

NOW_S = 1_700_000_030  # half a minute after the last line


def record(number, **more):
    return {
        "progress/step": number,
        "loss/task": 5.25,
        "loss/aux": 0.0125,
        "loss/locality": 0.5,
        "loss/total": 5.7625,
        "optim/learning_rate": 2.5e-3,
        "optim/grad_norm": 1.5,
        "time/step(s)": 2.0,
        "time/compute(s)": 1.2,
        "time/communication(s)": 0.8,
        "time/overlapped(s)": 0.4,
        "time/idle(s)": 0.4,
        "throughput/tokens_per_second": 1234.5,
        "comm/intra_node(B)": 22.7e6,
        "comm/inter_node(B)": 14.9e6,
        "moe/drop_fraction": 0.069,
        "moe/local_fraction": 0.498,
        "moe/load_max_over_mean": 1.86,
        "moe/tokens_per_expert": [[4, 4, 4, 4], [16, 0, 0, 0]],
        **more,
    }


def shown(folder):
    return terminal.view(RunFolder(str(folder)).read(), NOW_S)


def test_every_number(write_run_folder):
    """2 s a step, 60 steps left; 0.8 s computing alone, 0.4 both, 0.4 sending alone, 0.4 waiting: 40, 20, 20, 20 %."""
    records = [
        record(number, **({"valid/perplexity": 300.0 - number} if number % 20 == 0 else {})) for number in range(1, 41)
    ]
    lines = shown(write_run_folder("run", records, train__steps=100)).splitlines()
    found = "\n".join(lines)
    assert "locmoe, 8 experts a sparse layer; last line 30 s ago" in found
    assert "40 / 100  [########............] 40%, 2 min left at this pace" in found
    assert (
        "task 5.25  aux 0.0125  locality 0.5  total 5.763" in found
        and "learning rate 0.0025  gradient norm 1.5" in found
    )
    assert "perplexity 260 at step 40  best 260 at step 40" in found
    assert "1,234 tokens/s, 2 s a step (of the last 20 steps)" in found
    (bar,) = re.findall(r"time      \[(.*)\]", found)
    assert [bar.count(mark) / 56 for mark in "=#-."] == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=1 / 56)
    assert "= compute 40%  # both 20%  - communicate 20%  . wait 20%" in found
    assert "22.7 MB inside nodes, 14.9 MB between nodes a step" in found
    assert "dropped 6.9 %  kept on own node 49.8 %  busiest 1.86 x mean" in found
    assert "_ <0.1  . <0.5  - <0.9  = <1.1  + <1.5  # <2  @ more" in found
    assert lines[-2:] == ["layer 0   [====]", "layer 1   [@___]"]
    assert max(map(len, lines)) <= 79


@pytest.mark.parametrize("name", ["a/very" + "/long" * 30, "\u6211\u7684 \u5de5\u4f5c/" * 15])
def test_it_fits_whatever_a_run_holds(write_run_folder, name):
    huge = {
        name: 1.23456789e14
        for name in record(1)
        if name.startswith(("loss/", "optim/", "time/", "comm/", "moe/", "throughput/"))
    }
    many = {
        **record(123_456_789, **huge),
        "optim/skipped_steps": 1e9,
        "moe/capacity_factor": 123.456,
        "valid/perplexity": 1e300,
        "moe/tokens_per_expert": [[number % 7 for number in range(640)] for _ in range(40)],
    }
    found = shown(write_run_folder(name, [many, many], train__steps=987_654_321))
    assert max(map(display_width, found.splitlines())) <= 79 and len(found.splitlines()) <= 30
    assert "a mark the busiest of 12 experts" in found and "(28 lower layers are not shown)" in found


def test_marks_of_load(write_run_folder):
    """Eight experts, 80 tokens: the mean is 10."""
    loads = [0, 4, 8, 10, 13, 18, 25, 2]
    assert (
        shown(write_run_folder("run", [record(1, **{"moe/tokens_per_expert": [loads]})])).splitlines()[-1]
        == "layer 0   [_.-=+#@.]"
    )


DIVERGED = {
    "progress/step": 1,
    "loss/task": float("nan"),
    "moe/tokens_per_expert": [[0, 0]],
    "time/step(s)": None,
    "valid/perplexity": None,
}


@pytest.mark.parametrize("records", [[], [{"progress/step": 1}], [DIVERGED]])
def test_a_run_that_has_hardly_begun_or_diverged(write_run_folder, records):
    found = shown(write_run_folder("run", records))
    assert ("no step of 10 yet" in found) == (not records) and "nan" not in found
    assert ("perplexity diverged at step 1" in found and "task diverged" in found) == (
        len(records) == 1 and len(records[0]) > 1
    )


def test_a_run_that_ended_because_it_diverged(write_run_folder, monkeypatch):
    """Not finished for those who watch an earlier summary beside a run that resumes from before."""
    folder = write_run_folder("run", [record(1), record(2, **{"loss/task": None, "loss/total": None})])
    (folder / "summary.json").write_text('{"router": "locmoe", "status": "diverged", "progress/step": 2}')
    found = shown(folder)
    assert "a sparse layer; diverged" in found and "task diverged" in found and "left at this pace" not in found
    (folder / "summary.json").write_text('{"router": "locmoe", "status": "diverged", "progress/step": 7}')
    assert "last line 30 s ago" in shown(folder)


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal_it_goes_on_to_the_end(write_run_folder, monkeypatch):
    folder, screen, pauses = write_run_folder("run", [record(9)]), _Terminal(), []

    def pause(seconds):
        pauses.append(seconds)
        write_run_folder("run", [record(9), record(10)], finished=True)

    monkeypatch.setattr(terminal.time, "sleep", pause)
    terminal.watch(str(folder), screen)
    first, second = screen.getvalue().split("\x1b[H\x1b[J")[1:]
    assert "9 / 10" in first and "10 / 10" in second and "; finished" in second and pauses == [terminal.REFRESH_S]


def test_elsewhere_it_is_printed_once(write_run_folder, capsys):
    assert main(["watch", str(write_run_folder("run", [record(3)]))]) == 0
    printed = capsys.readouterr().out
    assert printed.count("3 / 10") == 1 and "\x1b" not in printed
    assert main(["watch", "/nowhere"]) == 2
    assert "found no config.yaml in it" in capsys.readouterr().err
