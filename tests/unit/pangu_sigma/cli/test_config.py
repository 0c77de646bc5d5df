"""`pangu-sigma config`: all keys, those that differ, the schema of all."""

import json

import pytest
import yaml

from pangu_sigma.cli.main import main
from pangu_sigma.config.json_schema import schema_text
from pangu_sigma.config.load import load_config
from pangu_sigma.runtime.resources import shipped_files

SHIPPED = {name: path for name, path in shipped_files().items() if name.startswith(("configs/ascend", "configs/q"))}


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("{}", [], {}),
        ("train: {steps: 1000}", [], {}),  # the default, written out
        ("train: {steps: 200}", ["--set", "train.seed=7"], {"train": {"steps": 200, "seed": 7}}),
        (
            "moe: {logical_topology: {world_size: 2}}",
            [],
            {"moe": {"logical_topology": {"world_size": 2, "ranks_per_node": 1, "expert": 1}}},
        ),
        ("data: {prepare: {sources: {en: x}}}", [], {"data": {"prepare": {"sources": {"en": "x"}}}}),
        ("optimizer: {clip_norm: null}", [], {"optimizer": {"clip_norm": None}}),
        ("moe: {router: {type: hash}}", [], {"moe": {"router": {"type": "hash"}}}),
        ("train: {profile: [2, 3]}", [], {"train": {"profile": [2, 3]}}),
    ],
)
def test_what_differs_from_the_defaults(tmp_path, capsys, text, words, expected):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert main(["config", str(path), "--changed", *words]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == expected


@pytest.mark.parametrize("name", SHIPPED)
def test_what_differs_is_a_configuration_that_means_the_same(tmp_path, capsys, name):
    ranks = "4" if name == "configs/quickstart.yaml" else name.rpartition("_")[2].partition(".")[0]
    assert main(["config", str(SHIPPED[name]), "--changed", "--ranks", ranks]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load_config(again) == load_config(SHIPPED[name])


def test_the_schema(capsys):
    assert main(["config", "--schema"]) == 0
    printed = capsys.readouterr().out
    assert printed == schema_text() == shipped_files()["configs/schema.json"].read_text(encoding="utf-8")
    assert json.loads(printed)["properties"]["train"]["properties"]["steps"]["type"] == "integer"
    assert main(["config", "--list"]) == 0
    assert "schema.json" not in capsys.readouterr().out  # it is no configuration


@pytest.mark.parametrize(
    "words",
    [
        "--schema --list",
        "--schema --copy x",
        "--schema @",
        "--schema --changed",
        "--list --key train.steps",
        "--schema --set train.steps=3",
    ],
)
def test_what_stands_alone(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    shipped = str(shipped_files()["configs/quickstart.yaml"])
    assert main(["config", *(word.replace("@", shipped) for word in words.split())]) == 2
    assert "--list, --copy and --schema stand alone; expected one of them and nothing else" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_key_or_those_that_differ(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("{}")
    assert main(["config", str(path), "--changed", "--key", "train.steps"]) == 2
    assert "--key train.steps: given with --changed" in capsys.readouterr().err
