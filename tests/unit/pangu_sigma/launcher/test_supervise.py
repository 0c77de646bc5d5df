"""What is started again, from where, how often: decided without a job. Real ones: test_train_supervised.py."""

import os
import signal

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.launcher import supervise as module
from pangu_sigma.launcher.request import LaunchRequest, RankCommand
from pangu_sigma.launcher.supervise import Supervision, newest_step, supervise


@pytest.fixture
def request_of(tmp_path):
    def _request(*overrides, **settings):
        (tmp_path / "config.yaml").write_text(f"train: {{output_dir: {tmp_path}/run}}\ncheckpoint: {{interval: 5}}\n")
        return LaunchRequest(RankCommand(str(tmp_path / "config.yaml"), overrides), **settings)

    return _request


@pytest.fixture
def attempts(request_of, tmp_path, monkeypatch):
    """`attempts("lost step_5 success")`: status, requests made and waits between them."""
    waits = []
    monkeypatch.setattr(module, "_pause", lambda seconds, signals: waits.append(seconds))

    def _run(words, *supervision):
        left, made = words.split(), []

        def attempt(request, signals):
            made.append(request)
            word = left.pop(0)
            if word.startswith("step_"):
                (tmp_path / "run" / "checkpoints" / word).mkdir(parents=True)
            if word == "diverged":
                (tmp_path / "run" / "summary.json").write_text('{"status": "diverged"}')
            if word == "told":
                os.kill(os.getpid(), signal.SIGTERM)
            return {"success": 0, "input": 2, "elsewhere": 143, "told": 143}.get(word, 1)

        return supervise(request_of("train.seed=3"), Supervision(*supervision), attempt), made, waits

    return _run


@pytest.mark.parametrize(
    "words, status, count, waits",
    [
        ("success", 0, 1, []),
        ("lost step_5 step_10 success", 0, 4, [10, 10, 10]),
        ("lost lost success", 0, 3, [10, 20]),
        ("lost lost step_5 lost success", 0, 5, [10, 20, 10, 20]),
        ("input", 2, 1, []),
        ("step_5 diverged", 1, 2, [10]),
        ("elsewhere", 143, 1, []),
        ("lost told", 143, 2, [10]),
        ("lost lost lost lost lost lost", 1, 6, [10, 20, 40, 80, 160]),
    ],
)
def test_outcomes(attempts, words, status, count, waits):
    found, made, waited = attempts(words)
    assert (found, len(made), waited) == (status, count, waits)
    assert {request.command.overrides for request in made} == {("train.seed=3", "checkpoint.resume=auto")}


def test_a_wait_has_a_bound(attempts):
    _, _, waited = attempts("lost lost lost success", 5, 200)
    assert waited == [200, 300, 300]


def test_restarts_are_listed(attempts, tmp_path):
    attempts("lost step_5 success")
    rows = [line.split("\t") for line in (tmp_path / "run" / "restarts.log").read_text().splitlines()]
    assert [(row[1], row[3]) for row in rows] == [("1", "-1"), ("1", "5")]


@pytest.mark.parametrize(
    "names, newest", [([], -1), (["step_5", "step_40", "step_x", ".writing-00", "step_100.old"], 40), (["step_0"], 0)]
)
def test_the_newest_checkpoint(tmp_path, names, newest):
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == newest


@pytest.mark.parametrize(
    "overrides, settings, fragment",
    [
        (["checkpoint.interval=0"], {}, "checkpoint.interval is 0"),
        (["checkpoint.resume=none"], {}, "--set checkpoint.resume=none: given where restarts need"),
        (["train.output_dir=/dev/null/x"], {}, "cannot make /dev/null/x"),
        ([], {"dry_run": True}, "--dry-run: is not training"),
    ],
)
def test_what_cannot_be_started_again(request_of, overrides, settings, fragment):
    with pytest.raises(InputError, match=fragment):
        supervise(request_of(*overrides, **settings), Supervision(), lambda *_: pytest.fail("started"))
