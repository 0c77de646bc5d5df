"""docs/python.md: its code as it stands there, in a process of its own; and what the commands make of the same run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pangu_sigma import Generator, InputError, Run, evaluate, load_config, prepare, train
from pangu_sigma.cli.main import main
from pangu_sigma.inference.load import load_model

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
TRAINING, LAYER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CONFIG = {
    "model": {"hidden_size": 32, "num_heads": 2, "dense_layers": 1, "sparse_layers": 1, "sequence_length": 32},
    "moe": {"num_experts": 4, "num_groups": 2},
    "optimizer": {"warmup_steps": 1},
    "train": {"global_batch_size": 2, "eval_rows": 4, "cosines": False},
    "runtime": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The page's code, run in a folder with a small configuration and texts; what it printed, and the folder."""
    folder = tmp_path_factory.mktemp("python")
    generator = np.random.default_rng(0)
    vocabulary = ["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(120)]
    words = generator.choice(vocabulary, (2, 8, 400))
    for domain, documents in zip(("one", "two"), words):
        (folder / domain).mkdir()
        for number, document in enumerate(documents):
            (folder / domain / f"{number}.txt").write_text(" ".join(document))
    data = {
        "path": "data",
        "prepare": {"sources": {"one": "one", "two": "two"}, "vocab_size": 320, "validation_fraction": 0.2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": data}))
    environment = {name: value for name, value in os.environ.items() if name != "GLOG_v"}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done, folder


@pytest.fixture
def run(ran, monkeypatch):
    monkeypatch.chdir(ran[1])
    return Run("runs/mine")


def test_it_says_nothing_that_is_not_meant_for_its_user(ran):
    """No warning of MindSpore's, no progress bar where there is no terminal."""
    done, _ = ran
    assert done.stderr == ""


def test_what_the_page_prints(ran, run):
    done, folder = ran
    lines = done.stdout.splitlines()
    first = max(number for number, line in enumerate(lines) if line.startswith("["))
    losses, summary, page, perplexity, *text = lines[first:]
    records = [json.loads(line) for line in (folder / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert json.loads(losses) == [record["loss/task"] for record in records] and len(records) == 4
    assert summary.split()[1:] == ["locmoe", "runs/mine/checkpoints/step_4"]
    assert page == "runs/mine/report.html" and (folder / page).is_file()
    assert "'value'" in perplexity and text


def test_a_run(ran, run):
    _, folder = ran
    assert run.config.train.steps == 4 and run.config.train.output_dir == "runs/mine"
    assert [record["progress/step"] for record in run.metrics] == [1, 2, 3, 4]
    assert run.summary == json.loads((folder / "runs/mine/summary.json").read_text())
    assert [path.name for path in run.checkpoints] == ["step_4"]
    assert Path(run) == Path("runs/mine") and repr(run) == "Run('runs/mine')"
    page = run.report("page.html")
    assert page == Path("page.html") and "locmoe" in page.read_text()


def test_commands_take_the_run(ran, run, capsys):
    """Without a word of checkpoint.resume; what is measured already is not measured again."""
    _, folder = ran
    results = json.loads((folder / "runs/mine/evaluation/step_4/results.json").read_text())
    for source in ("runs/mine", "runs/mine/checkpoints/step_4", "runs/mine/config.yaml"):
        assert main(["eval", source, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["results"] == results["results"] and Path(found["checkpoint"]).name == "step_4"
    for number, source in enumerate(("runs/mine", "runs")):
        assert main(["export", source, "--format", "safetensors", "--output", f"weights{number}"]) == 0
    for words in ("report runs", "summary runs", "watch runs", "ckpt verify runs", "config runs/mine --changed"):
        assert main(words.split()) == 0, words
    assert main(["train", "runs/mine"]) == 2
    assert "holds an earlier run" in capsys.readouterr().err


def test_a_run_that_was_moved_is_read_where_it_is(ran, run, tmp_path):
    """Its own configuration names the folder in which it was made."""
    _, folder = ran
    moved = tmp_path / "moved"
    os.rename(folder / "runs/mine", moved)
    try:
        assert evaluate(moved)["checkpoint"] == str(moved / "checkpoints" / "step_4")
        assert load_config(moved).train.output_dir == str(moved)
    finally:
        os.rename(moved, folder / "runs/mine")


def test_a_generator_takes_what_the_commands_take(ran, run):
    _, folder = ran
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["train"]["output_dir"] = "runs/mine"
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings))
    for source in (
        run,
        "runs/mine",
        "runs",
        run.checkpoints[-1],
        "mine.yaml",
        Path("runs/mine/config.yaml"),
        run.config,
    ):
        model = load_model(source)
        assert (model.step, model.checkpoint.name) == (4, "step_4")


def test_generation_is_that_of_the_command(ran, run, capsys):
    words = "--prompt ab --domain one --max-new-tokens 4 --temperature 0 --json".split()
    assert main(["generate", "runs/mine", *words]) == 0
    from pangu_sigma import SamplingSettings

    settings = SamplingSettings(max_new_tokens=4, temperature=0.0)
    with Generator.load(run, batch_size=1) as generator:
        assert generator.generate_text(["ab"], ["one"], settings) == [json.loads(capsys.readouterr().out)["text"]]


def test_errors_are_those_of_the_commands(ran, run, tmp_path):
    with pytest.raises(InputError, match="train.steps: found 'many', expected an integer >= 1"):
        load_config("config.yaml", {"train.steps": "many"})
    with pytest.raises(InputError, match="train.step: unknown key, did you mean train.steps?"):
        load_config("config.yaml", {"train.step": 3})
    with pytest.raises(InputError, match="holds an earlier run"):
        train(run.config)
    with pytest.raises(InputError, match="does not divide"):
        train(load_config("config.yaml", {"parallel.expert": 4}))
    with pytest.raises(InputError, match="found no config.yaml in it"):
        Run(tmp_path)
    with pytest.raises(InputError, match="holds no checkpoint"):
        evaluate(load_config("config.yaml", {"train.output_dir": "runs/other"}))
    with pytest.raises(InputError, match="data.prepare.sources: found none"):
        prepare(load_config("config.yaml", {"data.prepare.sources": {}}))


def test_the_layer_of_the_page():
    done = subprocess.run([sys.executable, "-c", LAYER], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, "True 2\n"), done.stderr
