"""What a path means: a configuration, a run, a checkpoint, a folder of runs; the same for every command."""

import os
from pathlib import Path

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.locate import (
    CHECKPOINT,
    FILE,
    MODEL,
    RUN,
    RUNS,
    SETTINGS,
    TRAINING,
    UNKNOWN,
    all_checkpoints_named,
    checkpoints_named,
    locate,
    read_configuration,
    run_named,
    runs_named,
)
from pangu_sigma.config.load import config_from_dict, save_config

# Of the workspace below: a path, what it is, and where that stands.
KINDS = [
    ("mine.yaml", FILE, "mine.yaml"),
    ("runs/a/config.yaml", FILE, "runs/a/config.yaml"),
    ("runs/a", RUN, "runs/a"),
    ("runs/a/", RUN, "runs/a"),
    ("runs/a/checkpoints", RUN, "runs/a"),
    ("runs/a/checkpoints/step_3", CHECKPOINT, "runs/a/checkpoints/step_3"),
    ("runs/old", RUN, "runs/old"),  # with a configuration that does not say who saved it
    ("runs/bare", RUN, "runs/bare"),  # whose configuration is gone
    ("runs", RUNS, "runs"),
    (".", RUNS, "."),
    ("alone", CHECKPOINT, "alone"),
    ("moved", CHECKPOINT, "moved/step_3"),
    ("cut", CHECKPOINT, "cut"),  # with the configuration of a run that begins there, as of `ckpt extract`
    ("cut/config.yaml", FILE, "cut/config.yaml"),
    ("exported", UNKNOWN, "exported"),
    ("project", RUNS, "project"),  # a configuration that a user wrote, and below it the run
    ("data", UNKNOWN, "data"),
    ("texts", UNKNOWN, "texts"),
    ("absent", UNKNOWN, "absent"),
]


@pytest.fixture
def workspace(tmp_path, monkeypatch, job, random_tensors):
    """Runs, checkpoints and other folders; the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/deep/er/b", "project/run"):
        folder = Path(name)
        folder.mkdir(parents=True)
        steps = {"train": {"steps": 7, "output_dir": f"elsewhere/{folder.name}"}, "checkpoint": {"resume": "gone"}}
        save_config(config_from_dict(steps), folder / "config.yaml")
        (folder / "metrics.jsonl").write_text('{"progress/step": 1}\n')
    Path("runs/old").mkdir()
    Path("runs/old/config.yaml").write_text("train: {steps: 9}\n")
    Path("runs/old/metrics.jsonl").touch()
    for root, step in (("runs/a/checkpoints", 3), ("runs/bare/checkpoints", 3), ("moved", 3), ("moved", 2)):
        job(Path(root), step, random_tensors(0))
    os.rename("moved/step_2", "alone")
    job(Path("cut"), 2, random_tensors(0))
    for path in Path("cut/step_2").iterdir():
        path.rename(Path("cut") / path.name)
    Path("cut/step_2").rmdir()
    Path("exported").mkdir()
    begun = {"train": {"output_dir": "later"}, "checkpoint": {"initial": "cut"}}
    for folder in ("cut", "exported"):
        save_config(config_from_dict(begun), Path(folder) / "config.yaml")
    Path("mine.yaml").write_text("train: {steps: 5, output_dir: runs/a}\n")
    Path("project/config.yaml").write_text("train: {steps: 6, output_dir: project/run}\n")
    for folder in ("data", "texts"):
        Path(folder).mkdir()
    Path("data/manifest.json").write_text("{}")
    Path("data/token_counts.npy").touch()
    return tmp_path


def test_what_a_path_is(workspace):
    assert [(path, *locate(path)) for path, _, _ in KINDS] == [(path, kind, Path(place)) for path, kind, place in KINDS]


# path, use, and of the configuration that it means: train.steps, train.output_dir, checkpoint.resume
CONFIGURATIONS = [
    ("mine.yaml", SETTINGS, 5, "runs/a", None),
    ("mine.yaml", MODEL, 5, "runs/a", None),
    ("runs/a", SETTINGS, 7, "runs/a", "gone"),
    ("runs/a", TRAINING, 7, "runs/a", "gone"),
    ("runs/a", MODEL, 7, "runs/a", "auto"),
    ("runs/a/config.yaml", TRAINING, 7, "elsewhere/a", "gone"),  # a file, as before
    ("runs/a/config.yaml", MODEL, 7, "runs/a", "auto"),
    ("runs/a/checkpoints", MODEL, 7, "runs/a", "auto"),
    ("runs/a/checkpoints/step_3", MODEL, 1000, "runs/a", "runs/a/checkpoints/step_3"),
    ("runs/a/checkpoints/step_3", SETTINGS, 1000, "runs/a", None),
    ("runs/bare", MODEL, 1000, "runs/bare", "auto"),
    ("runs/old", MODEL, 9, "runs/old", "auto"),
    ("alone", MODEL, 1000, "alone", "alone"),  # what is made of it goes into it
    ("moved", MODEL, 1000, "moved/step_3", "moved/step_3"),
    ("cut", MODEL, 1000, "cut", "cut"),
    ("cut", SETTINGS, 1000, "runs/default", None),
    ("cut/config.yaml", MODEL, 1000, "later", None),
    ("cut/config.yaml", TRAINING, 1000, "later", None),
    ("exported/config.yaml", TRAINING, 1000, "later", None),
    ("project", MODEL, 7, "project/run", "auto"),  # the only run there is
]


@pytest.mark.parametrize(("path", "use", "steps", "output", "resume"), CONFIGURATIONS)
def test_the_configuration_of_a_path(workspace, path, use, steps, output, resume):
    config = read_configuration(path, use=use)
    assert (config.train.steps, config.train.output_dir, config.checkpoint.resume) == (steps, output, resume)
    again = read_configuration(path, ["checkpoint.resume=x", "train.output_dir=y", "train.seed=4"], use)
    assert (again.checkpoint.resume, again.train.output_dir, again.train.seed) == ("x", "y", 4)


@pytest.mark.parametrize(
    ("path", "use", "line"),
    [
        ("runs", MODEL, "runs: holds 4 runs; expected one of them: runs/a, runs/bare, runs/deep/er/b, runs/old"),
        (".", SETTINGS, r"\.: holds 5 runs; expected one of them: .* and 1 more"),
        ("texts", MODEL, "texts: found neither run nor checkpoint in this folder; expected a YAML configuration"),
        ("data", MODEL, "data: found neither run nor checkpoint"),
        ("absent", MODEL, "absent: cannot be read"),
        ("x" * 300, MODEL, r"cannot be read \(file name too long\)"),
        ("alone", TRAINING, "alone: found a checkpoint; expected .* checkpoint.resume=alone to resume there"),
    ],
)
def test_what_is_no_configuration(workspace, path, use, line):
    with pytest.raises(InputError, match=line):
        read_configuration(path, use=use)


def test_a_configuration_keeps_what_it_says_of_where_a_run_began(workspace):
    """Who asks for a run's model does not mean the weights that the run began with."""
    save_config(config_from_dict({"checkpoint": {"initial": "start"}}), Path("runs/a/config.yaml"))
    assert read_configuration("runs/a", use=MODEL).checkpoint.initial is None
    assert read_configuration("runs/a", use=TRAINING).checkpoint.initial == "start"


def test_runs(workspace):
    every = ["runs/a", "runs/bare", "runs/deep/er/b", "runs/old"]
    assert runs_named(["runs"]) == every
    assert runs_named(["runs/old", "runs/a/checkpoints/step_3", "mine.yaml"]) == ["runs/old", "runs/a", "runs/a"]
    assert runs_named(["runs/a/config.yaml", "project"]) == ["runs/a", "project/run"]
    assert runs_named(["texts", "absent"]) == ["texts", "absent"]  # whoever reads them says what is missing
    assert run_named("project") == "project/run"
    with pytest.raises(InputError, match="alone: found a checkpoint that belongs to no run; expected the folder of"):
        runs_named(["alone"])
    with pytest.raises(InputError, match="runs: holds 4 runs; expected one of them"):
        run_named("runs")


def test_checkpoints(workspace):
    assert checkpoints_named("runs/a/checkpoints/step_3") == "runs/a/checkpoints/step_3"
    assert checkpoints_named("mine.yaml") == checkpoints_named("runs/a") == "runs/a"
    assert checkpoints_named("absent") == "absent"
    assert all_checkpoints_named(["runs", "alone"]) == [*runs_named(["runs"]), "alone"]
    with pytest.raises(InputError, match="runs: holds 4 runs"):
        checkpoints_named("runs")
