"""Every command takes a run, a checkpoint or a configuration, whichever one has, and means the same by each.

`compare` and `trace` alone take files of their own kind.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from pangu_sigma.checkpoint.folders import resolve
from pangu_sigma.checkpoint.format import CheckpointHeader, DataState
from pangu_sigma.checkpoint.parts import LocalTensor
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.cli.main import ADD_COMMANDS, main
from pangu_sigma.config.load import config_from_dict, save_config, to_dict
from pangu_sigma.runtime.launch import CLUSTER_VARIABLES, RANK_VARIABLES

SETTINGS = {
    "model": {"hidden_size": 48, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32},
    "moe": {"num_experts": 4},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": 2, "global_batch_size": 2},
    "runtime": {"device": "cpu"},
}
RUN, STEP = "runs/a", "runs/a/checkpoints/step_2"
SOURCES = {"run": RUN, "checkpoint": STEP, "configuration": "mine.yaml", "saved": f"{RUN}/config.yaml"}

# Words of a command, @ being what is asked for; and the function that gets the configuration, or the path.
READS_SETTINGS = [
    ("prepare @", "pangu_sigma.data.prepare.prepare"),
    ("train @", "pangu_sigma.train.run.train"),
    ("config @", "pangu_sigma.cli.config.to_dict"),
    ("plan @", "pangu_sigma.planner.cluster.cluster_of"),
    ("audit @", "pangu_sigma.audit.audit.audit"),
    ("doctor @", "pangu_sigma.doctor.doctor.doctor"),
    ("bench step @", "pangu_sigma.bench.step.bench_step"),
    ("bench router @", "pangu_sigma.bench.router.bench_router"),
    ("bench decode @", "pangu_sigma.bench.decode.bench_decode"),
]
ASKS_A_MODEL = [
    ("eval @", "pangu_sigma.evaluation.evaluate.evaluate"),
    ("generate @ --prompt x", "pangu_sigma.inference.prompts.generate"),
    ("export @ --format mindir --output out", "pangu_sigma.inference.export.export_mindir"),
    ("export @ --format safetensors --output out", "pangu_sigma.inference.export.export_safetensors"),
]
READS_A_RUN = [
    ("report @", "pangu_sigma.report.runs.report"),
    ("summary @", "pangu_sigma.report.summary.summarise_runs"),
    ("watch @", "pangu_sigma.report.terminal.watch"),
    ("profile @", "pangu_sigma.report.step_trace.profile_table"),
]
READS_A_CHECKPOINT = [
    ("ckpt inspect @", "pangu_sigma.checkpoint.surgery.inspect.inspect"),
    ("ckpt verify @", "pangu_sigma.checkpoint.surgery.inspect.verify"),
    ("ckpt diff @ @", "pangu_sigma.checkpoint.surgery.difference.diff"),
    ("ckpt reshard @ out --shards 2", "pangu_sigma.checkpoint.surgery.rewrite.reshard"),
    ("ckpt extract @ out --domain 0", "pangu_sigma.checkpoint.surgery.extract.extract"),
    ("ckpt export-map @ out", "pangu_sigma.checkpoint.surgery.export_map.newest"),
    ("ckpt inherit mine.yaml @ out", "pangu_sigma.checkpoint.surgery.dense.OwnModel"),
]


class Called(Exception):
    """What a command handed on; nothing of it is carried out."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A run with a checkpoint, in a folder that another run shares, and a configuration that names it."""
    root = tmp_path_factory.mktemp("workspace")
    run = root / RUN
    config = config_from_dict({**SETTINGS, "train": {**SETTINGS["train"], "output_dir": "where it was made"}})
    data = DataState("ab" * 32, 400, ("en",), "cd" * 32)
    with CheckpointWriter(run / "checkpoints", WritingJob(0, (0,), 5.0, lambda: None), Retention()) as writer:
        header = CheckpointHeader(2, "training", to_dict(config), data, {}, {}, {})
        writer.save(header, [LocalTensor("x", np.zeros(3, np.float32), None, "dense_0.safetensors")])
    save_config(config, run / "config.yaml")
    (root / "runs" / "b").mkdir()
    save_config(config, root / "runs" / "b" / "config.yaml")
    (root / "runs" / "b" / "metrics.jsonl").touch()
    (root / "mine.yaml").write_text(
        yaml.safe_dump({**SETTINGS, "train": {**SETTINGS["train"], "output_dir": RUN}}), encoding="utf-8"
    )
    return root


@pytest.fixture
def handed_on(workspace, monkeypatch, capsys):
    """`handed_on(words, function)`: the first argument that the command gives to the function."""
    monkeypatch.chdir(workspace)
    for name in (*RANK_VARIABLES, *CLUSTER_VARIABLES):
        monkeypatch.delenv(name, raising=False)

    def call(words, function):
        module, _, name = function.rpartition(".")
        found = []

        def stand_in(*arguments, **options):
            found.append(arguments[0])
            raise Called

        monkeypatch.setattr(importlib.import_module(module), name, stand_in)
        assert main(words) == 1, capsys.readouterr().err
        assert "Called" in capsys.readouterr().err
        return found[0]

    return call


def rows(commands, *sources):
    return [
        pytest.param(words, function, SOURCES[source], id=f"{words}, {source}")
        for words, function in commands
        for source in sources
        if (words, source) != ("train @", "checkpoint")
    ]


@pytest.mark.parametrize(("words", "function", "source"), rows(READS_SETTINGS, "run", "checkpoint", "configuration"))
def test_a_command_that_reads_settings(handed_on, words, function, source):
    config = handed_on(words.replace("@", source).split() + ["--set", "train.seed=7"], function)
    assert (config.model.hidden_size, config.train.output_dir, config.train.seed) == (48, RUN, 7)


@pytest.mark.parametrize(("words", "function", "source"), rows(ASKS_A_MODEL, *SOURCES))
def test_a_command_that_asks_a_model(handed_on, words, function, source):
    """Without a word of checkpoint.resume."""
    from pangu_sigma.checkpoint.resume import find_source
    from pangu_sigma.inference.load import checkpoint_of

    config = handed_on(words.replace("@", source).split() + ["--set", "train.seed=7"], function)
    assert (config.model.hidden_size, config.train.output_dir, config.train.seed) == (48, RUN, 7)
    if words.startswith("eval"):
        assert find_source(config, None, for_training=False).candidates[-1] == Path(STEP)
    else:
        assert resolve(checkpoint_of(config))[-1] == Path(STEP)


@pytest.mark.parametrize(("words", "function", "source"), rows(READS_A_RUN, *SOURCES))
def test_a_command_that_reads_a_run(handed_on, words, function, source):
    given = handed_on(words.replace("@", source).split(), function)
    assert [str(one) for one in (given if isinstance(given, list) else [given])] == [RUN]


@pytest.mark.parametrize(("words", "function", "source"), rows(READS_A_CHECKPOINT, *SOURCES))
def test_a_command_that_reads_a_checkpoint(handed_on, words, function, source):
    given = handed_on(words.replace("@", source).split(), function)
    (one,) = given if isinstance(given, list) else [given]
    assert resolve(Path(one))[-1] == Path(STEP)


@pytest.mark.parametrize(("words", "function"), [*READS_A_RUN[:2], READS_A_CHECKPOINT[1]])
def test_a_folder_of_runs_means_all_of_them(handed_on, words, function):
    assert handed_on(words.replace("@", "runs").split(), function) == ["runs/a", "runs/b"]


TAKES_ONE = [*READS_SETTINGS, *ASKS_A_MODEL, *READS_A_RUN[2:], READS_A_CHECKPOINT[0], *READS_A_CHECKPOINT[2:]]


@pytest.mark.parametrize("words", [words for words, _ in TAKES_ONE])
def test_where_one_run_is_meant_a_folder_of_several_is_refused(workspace, monkeypatch, capsys, words):
    monkeypatch.chdir(workspace)
    assert main(words.replace("@", "runs").split()) == 2
    error = capsys.readouterr().err.splitlines()
    assert error == ["pangu-sigma: error: runs: holds 2 runs; expected one of them: runs/a, runs/b"]


def test_every_command_is_in_these_tables():
    tables = (*READS_SETTINGS, *ASKS_A_MODEL, *READS_A_RUN, *READS_A_CHECKPOINT)
    names = {words.split()[0] for words, _ in tables}
    assert names | {"compare", "launch", "trace"} == {add.__name__.partition("_")[2] for add in ADD_COMMANDS}
