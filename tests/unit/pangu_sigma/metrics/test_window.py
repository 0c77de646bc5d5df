"""The rule by which a run's numbers are taken, by hand, and that everything which shows a run shows the same ones."""

import io
import json
import re
from html import unescape

import pytest
import yaml

from pangu_sigma.config.load import config_from_dict, to_dict
from pangu_sigma.metrics.window import measured, middle_half, summarise, timed_steps
from pangu_sigma.report import terminal
from pangu_sigma.report.collect import run_values
from pangu_sigma.report.folder import RunFolder
from pangu_sigma.report.runs import render
from pangu_sigma.report.summary import summarise_runs
from pangu_sigma.train.console import console_line

STEP = "time/step(s)"


def steps(*times, **more):
    return [
        {"progress/step": number + 1, STEP: time, **{name: values[number] for name, values in more.items()}}
        for number, time in enumerate(times)
    ]


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ([5.0], [5.0]),
        ([3.0, 1.0, 2.0], [1.0, 2.0, 3.0]),
        ([4.0, 9.0, 1.0, 3.0], [3.0, 4.0]),
        ([None, 2.0], [2.0]),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 80.0], [3.0, 4.0, 5.0, 6.0]),
        ([], []),
    ],
)
def test_middle_half(times, kept):
    assert [record[STEP] for record in middle_half(steps(*times))] == kept


@pytest.mark.parametrize(
    ("count", "ignored", "kept"),
    [(1, 1, [1]), (2, 1, [2]), (3, 1, [2, 3]), (8, 1, [6, 7]), (8, 6, [7, 8]), (8, 8, [6, 7]), (0, 1, [])],
)
def test_which_steps_are_timed(count, ignored, kept):
    """Of 8 steps the window is 5 to 8; later ones take longer, so the fastest is 5 and the slowest 8."""
    assert [record["progress/step"] for record in timed_steps(steps(*map(float, range(1, count + 1))), ignored)] == kept


def test_lists_counts_and_what_is_missing():
    records = steps(
        1.0,
        1.0,
        2.0,
        4.0,
        **{
            "moe/tokens_per_expert": [[[9, 9]], [[9, 9]], [[1, 4]], [[2, 2]]],
            "moe/local_fraction_by_layer": [[0.9, 0.9], [0.9, 0.9], [0.25, 0.5], [0.75, 1.0]],
            "moe/graphs": [1, 1, 2, 3],
            "moe/load_max_over_mean": [1.0, 1.0, None, None],
            "throughput/tokens_per_second": [1, 1, 10, 10],
            "time/unix": [1e9, 1e9 + 1, 1e9 + 3, 1e9 + 7],  # moments, of which there is no mean
        },
    )
    assert summarise(records)["time/unix"] == 1e9 + 7
    assert measured(records) == {
        STEP: 3.0,
        "throughput/tokens_per_second": 10.0,
        "moe/tokens_per_expert": [[1.5, 3.0]],
        "moe/local_fraction_by_layer": [0.5, 0.75],
        "moe/graphs": 3,
    }


@pytest.fixture
def run(tmp_path):
    """A run of 20 steps: compiling, then a router that learns, and steps that the machine disturbed."""
    folder = tmp_path / "locmoe"
    folder.mkdir()
    config = config_from_dict(
        {
            "model": {"sequence_length": 32},
            "optimizer": {"warmup_steps": 1},
            "train": {"steps": 20, "global_batch_size": 4, "output_dir": str(folder)},
        }
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    times = [40.0, *[0.5 + 0.01 * (number % 7) for number in range(18)], 9.0]
    records = [
        {
            "progress/step": number + 1,
            "loss/task": 5.0,
            "loss/total": 5.0,
            "optim/learning_rate": 1e-3,
            STEP: time,
            "time/compute(s)": 0.6 * time,
            "time/communication(s)": 0.3 * time,
            "time/overlapped(s)": 0.1 * time,
            "time/idle(s)": 0.2 * time,
            "throughput/tokens_per_second": 128.0 / time,
            "moe/drop_fraction": 0.5 / (number + 1),
            "moe/local_fraction": 0.02 * number,
            "comm/inter_node(B)": 1000.0 + number,
            "comm/intra_node(B)": 1.0,
        }
        for number, time in enumerate(times)
    ]
    records[-1].update({"valid/loss": 4.0, "valid/perplexity": 54.59815})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "summary.json").write_text(
        json.dumps({"router": "locmoe", "unigram_perplexity": 90.0, **summarise(records)})
    )
    return folder, records


def test_one_run_one_answer(run, tmp_path, capsys):
    """Steps 11 to 20 are the window. They took 0.52, 0.53, 0.54, 0.55, 0.56, 0.50, 0.51, 0.52, 0.53 and 9 s. Two of
    each end go, which leaves 0.52, 0.52, 0.53, 0.53, 0.54, 0.55: 3.19 s for six steps, 128 tokens each.
    """
    folder, records = run
    pace, dropped = 6 * 128 / 3.19, sum(0.5 / number for number in range(11, 21)) / 10
    local, communication = sum(0.02 * number for number in range(10, 20)) / 10, 0.3 * 3.19 / 6
    summary = json.loads((folder / "summary.json").read_text())
    values = run_values(records, summary, 1)
    for found in (summary, values):
        assert [
            found[name]
            for name in (
                "throughput/tokens_per_second",
                "moe/drop_fraction",
                "moe/local_fraction",
                "time/communication(s)",
            )
        ] == pytest.approx([pace, dropped, local, communication])
        assert found["time/compute(s)"] + found["time/communication(s)"] + found["time/idle(s)"] - found[
            "time/overlapped(s)"
        ] == pytest.approx(found[STEP])  # the pieces add up
    console = console_line(records[-1], 20, measured(records))
    assert f"  {pace:.0f} tok/s  0.532 s" in console
    state = RunFolder(str(folder)).read()
    watched = terminal.view(state, 0.0)
    assert f"{pace:.1f} tokens/s, 532 ms a step (of the last 10 steps)" in watched
    assert (
        f"dropped {dropped:.1%}".replace("%", " %") in watched
        and f"kept on own node {local:.1%}".replace("%", " %") in watched
    )
    assert "= compute 50%  # both 10%  - communicate 20%  . wait 20%" in watched
    page = unescape(re.sub("<[^>]*>", " ", render([state])))
    for name, text in (
        ("tokens per second", f"{pace:.1f}"),
        ("tokens dropped", f"{100 * dropped:.1f} %"),
        ("step time", "532 ms"),
        ("tokens kept on their own node", f"{100 * local:.1f} %"),
        ("communication", f"{1000 * communication:.3g} ms"),
    ):
        assert re.search(rf" {name} +{re.escape(text)} ", page), name
    summarise_runs([str(folder)])
    shown = capsys.readouterr().out.splitlines()[3].split()
    assert shown[:5] == ["locmoe", "54.6", f"{pace:.0f}", f"{local:.1%}", f"{dropped:.1%}"]
    terminal.watch(str(folder), output := io.StringIO())
    assert f"{pace:.1f} tokens/s" in output.getvalue()
