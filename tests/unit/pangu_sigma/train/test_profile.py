"""Which steps are recorded, and by what; a stand-in for MindSpore's profiler notes how it is used."""

import json

import pytest

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.train import profile as module
from pangu_sigma.train.metrics import HostCounters, Traffic
from pangu_sigma.train.profile import StepProfile


def own(step_s):
    """A step of which a quarter is communication, half of it hidden, and an eighth is idle."""
    return HostCounters(step_s, Traffic(step_s / 4, step_s / 8, step_s / 8), Traffic(), Traffic(), Traffic())


@pytest.fixture
def make(tmp_path):
    def make(steps, device="cpu"):
        return StepProfile(
            config_from_dict({"train": {"profile": steps, "output_dir": str(tmp_path)}, "runtime": {"device": device}}),
            3,
        )

    return make


def run(profile, first, last):
    for step in range(first, last + 1):
        profile.begin(step)
        profile.end(step, own(step / 2))


def test_timers_of_the_steps_asked_for(make, tmp_path):
    run(make([3, 4]), 1, 6)
    assert json.loads((tmp_path / "profile" / "rank_3.json").read_text()) == {
        "steps": [
            {"step": 3, "compute(s)": 1.125, "communication(s)": 0.375, "overlapped(s)": 0.1875, "idle(s)": 0.1875},
            {"step": 4, "compute(s)": 1.5, "communication(s)": 0.5, "overlapped(s)": 0.25, "idle(s)": 0.25},
        ]
    }


def test_a_run_that_stops_early_leaves_what_it_has(make, tmp_path):
    profile = make([3, 9])
    run(profile, 4, 5)  # resumed after step 3, to stop after step 5
    assert not (tmp_path / "profile").exists()
    profile.close()
    assert [step["step"] for step in json.loads((tmp_path / "profile" / "rank_3.json").read_text())["steps"]] == [4, 5]


def test_nothing_asked_for_nothing_written(make, tmp_path):
    profile = make(None)
    run(profile, 1, 3)
    profile.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (1, ["make 2", "start", "step", "step", "stop"]),
        (4, ["make 1", "start", "step", "stop"]),
        (5, []),
    ],
)
def test_on_ascend_the_profiler_sees_those_steps(make, monkeypatch, tmp_path, first, expected):
    calls = []

    class Profiler:
        def __init__(self, folder, rank, steps):
            assert (folder, rank) == (tmp_path / "profile", 3)
            calls.append(f"make {steps}")

        def __getattr__(self, name):
            return lambda: calls.append(name)

    monkeypatch.setattr(module, "ascend_profiler", Profiler)
    run(make([3, 4], "ascend"), first, 6)
    assert calls == expected and not (tmp_path / "profile").exists()


def test_mindspore_takes_the_arguments(monkeypatch, tmp_path):
    """The real profiler refuses a CPU when it is made, so only its arguments are looked at."""
    from mindspore import profiler

    seen = {}
    monkeypatch.setattr(profiler, "profile", lambda **options: seen.update(options))
    module.ascend_profiler(tmp_path, 3, 2)
    actions = [seen["schedule"](step) for step in range(3)]
    assert [action.name for action in actions] == ["RECORD", "RECORD_AND_SAVE", "NONE"]
    assert seen["start_profile"] is False and callable(seen["on_trace_ready"])
