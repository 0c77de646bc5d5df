"""Reading a run folder while something writes to it."""

import json
import os

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.report.folder import RunFolder


def steps(*numbers):
    return [{"progress/step": number, "loss/task": 7.0} for number in numbers]


def found(run):
    return [record["progress/step"] for record in run.read().records]


def test_what_is_new_is_added(write_run_folder):
    folder = write_run_folder("run", steps(1, 2))
    run = RunFolder(str(folder))
    before = run.read()
    line = json.dumps(steps(3)[0]).encode()
    with open(folder / "metrics.jsonl", "ab", buffering=0) as file:
        file.write(line[:9])
        assert found(run) == [1, 2]  # half a line is none yet
        file.write(line[9:])
        assert found(run) == [1, 2]  # nor is one without its end
        file.write(b"\n")
        assert found(run) == [1, 2, 3]
    assert len(before.records) == 2 and (before.step, before.steps, before.finished) == (2, 10, False)


def test_lines_that_are_no_step_are_passed_over(write_run_folder):
    folder = write_run_folder("run", steps(1))
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(
            b'{"progress/step": 2, "loss\n[1]\n{"progress/step": true}\n{"progress/step": 3, "a": NaN}\n'
            b'\xff\xfe\n\n{"progress/st'
        )
    assert found(RunFolder(str(folder))) == [1, 3]


def test_a_run_that_goes_on_from_an_earlier_step(write_run_folder, tmp_path):
    """MetricsLog puts another file in the old one's place, here of the same length, and writes on."""
    folder = write_run_folder("run", steps(1, 2, 3))
    run = RunFolder(str(folder))
    (tmp_path / "new").write_text("".join(json.dumps(record) + "\n" for record in steps(1, 2, 4)))
    os.replace(tmp_path / "new", folder / "metrics.jsonl")
    assert found(run) == [1, 2, 4]
    (folder / "metrics.jsonl").write_text("")  # cut to nothing, in place
    assert found(run) == []
    (folder / "metrics.jsonl").unlink()
    assert run.read().step == 0


def test_finished_needs_all_steps_and_a_summary(write_run_folder):
    assert not RunFolder(str(write_run_folder("a", steps(10)))).read().finished
    assert (
        not RunFolder(str(write_run_folder("b", steps(9), finished=True))).read().finished
    )  # of an earlier run in the folder
    assert RunFolder(str(write_run_folder("c", steps(10), finished=True))).read().finished


def test_a_run_started_again_with_more_steps(write_run_folder):
    folder = write_run_folder("run", steps(10), finished=True)
    run = RunFolder(str(folder))
    write_run_folder("run", steps(10), train__steps=20)
    os.utime(folder / "config.yaml", (1, 1))  # another time than the first file's, however coarse the clock
    assert (run.read().steps, run.read().finished) == (20, False)


def test_a_folder_that_is_none_of_a_run(tmp_path):
    with pytest.raises(InputError, match="found no config.yaml in it, expected the folder of a run"):
        RunFolder(str(tmp_path))
