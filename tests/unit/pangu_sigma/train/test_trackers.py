"""Places for metrics beside metrics.jsonl: which there are, and that a missing library is said. Trackers are modules
made up here.
"""

import sys
from types import SimpleNamespace

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.train.events import EventLog
from pangu_sigma.train.metrics import MetricsLog
from pangu_sigma.train.trackers import LibraryTracker, check_trackers, open_trackers


def config_of(folder, **train):
    return config_from_dict({"train": {"steps": 5, "output_dir": str(folder), **train}})


@pytest.mark.parametrize(
    ("tracker", "place"),
    [("wandb", {"name": "locmoe", "dir": "{}"}), ("swanlab", {"experiment_name": "locmoe", "logdir": "{}/swanlab"})],
)
def test_a_tracker_gets_the_numbers_of_each_step(monkeypatch, tmp_path, tracker, place):
    folder, calls = tmp_path / "locmoe", []
    folder.mkdir()
    module = SimpleNamespace(
        init=lambda **options: calls.append(options),
        finish=lambda: calls.append("finish"),
        log=lambda numbers, step: calls.append((step, numbers)),
        __spec__=SimpleNamespace(name=tracker),
    )
    monkeypatch.setitem(sys.modules, tracker, module)
    config = config_of(folder, tracker=tracker)
    check_trackers(config)
    log = MetricsLog(folder / "metrics.jsonl", 0, open_trackers(config, 0, {}))
    for step in (1, 2):  # a number that is none goes nowhere
        log.write(
            {
                "progress/step": step,
                "loss/task": 7.5,
                "optim/grad_norm": None,
                "valid/loss": float("nan"),
                "loss/aux": float("inf"),
                "moe/tokens_per_expert": [[1, 2]],
            }
        )
    log.close({"token_gate": {"edges": [0.0, 1.0], "counts": [1]}})
    begin, *steps, end = calls
    assert begin.pop("project") == "pangu-sigma" and begin.pop("config")["train"]["tracker"] == tracker
    assert begin == {name: text.format(folder) for name, text in place.items()}
    assert steps == [(step, {"progress/step": step, "loss/task": 7.5}) for step in (1, 2)] and end == "finish"


def test_none_unless_asked_for(tmp_path):
    check_trackers(config_of(tmp_path))
    assert open_trackers(config_of(tmp_path), 0, {}) == []
    (only,) = open_trackers(config_of(tmp_path, tensorboard=True), 0, {})
    assert isinstance(only, EventLog) and not isinstance(only, LibraryTracker)
    only.close()


@pytest.mark.parametrize(
    ("module", "train", "message"),
    [
        (
            "tensorboardX",
            {"tensorboard": True},
            "train.tensorboard is true, but tensorboardX is not installed; expected it, as pip install "
            "tensorboardX does, or false",
        ),
        (
            "wandb",
            {"tracker": "wandb"},
            "train.tracker is wandb, but wandb is not installed; expected it, as pip install wandb does, or none",
        ),
    ],
)
def test_a_library_that_is_not_installed(monkeypatch, tmp_path, module, train, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as raised:
        check_trackers(config_of(tmp_path, **train))
    assert str(raised.value) == message
