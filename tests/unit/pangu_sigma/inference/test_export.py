"""Exported models, read back."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from locmoe_ops.errors import InputError
from pangu_sigma.cli.main import main
from pangu_sigma.inference.export import export_mindir, export_safetensors, load_exported
from pangu_sigma.inference.export_dense import export_hf_pangu_alpha, export_mindformers
from pangu_sigma.inference.generator import SamplingSettings
from pangu_sigma.inference.load import load_model

PROMPTS, DOMAINS = [[261, 300, 270], [299, 2, 288, 264, 271], [310]], [0, 1, 1]
SETTINGS = SamplingSettings(max_new_tokens=6, temperature=1.2, stop_at_end=False)


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "-ein 模型+=,'\""
    assert (
        main(["export", str(run_folder / "config.yaml"), "--format", "mindir", f"--output={folder}", "--rows", "2"])
        == 0
    )
    return folder


def test_mindir_generates_the_same_tokens(exported, generator):
    found = load_exported(str(exported)).generate(PROMPTS, DOMAINS, SETTINGS)
    assert found == generator.generate(PROMPTS, DOMAINS, SETTINGS)
    assert len({token for output in found for token in output}) > 6


def test_the_description_says_how_to_run_the_graphs(exported, generator):
    found = json.loads((exported / "generation.json").read_text())
    assert (found["rows"], found["length"], found["cache"]) == (2, 32, {"shape": [2, 2, 32, 8], "dtype": "Float32"})
    caches = ["key 0", "value 0", "key 1", "value 1"]
    assert found["decode"] == {
        "inputs": ["ids", "positions", "places", "domain", "home", *caches],
        "outputs": ["logits", *caches],
    }
    assert found["domain_tags"] == list(generator.codec.tokenizer.domain_tags.values())


@pytest.mark.parametrize(
    "output, told",
    [
        ("n" * 256, "cannot be made (File name too long); expected the name of a new folder"),
        ("file/out", "cannot be made in"),
        ("dangling", "is there already"),
        ("link", "is there already"),
        (".", "is there already"),
        ("shut/out", "cannot be made in"),
        ("", "is there already"),
    ],
)
@pytest.mark.parametrize(
    "export",
    [
        lambda config, target: export_mindir(config, target, 1, None),
        export_safetensors,
        export_hf_pangu_alpha,
        export_mindformers,
    ],
)
def test_a_folder_that_cannot_be_made_is_told_before_a_model_is_read(tmp_path, monkeypatch, export, output, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(
        "os.access", lambda path, mode: path.name not in ("shut", "file")
    )  # who runs as root may write everywhere
    (tmp_path / "shut").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    for target in (output, Path(output)):
        with pytest.raises(InputError, match=re.escape(told)):
            export(None, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_name_that_begins_with_a_dash_is_told_how_to_be_given(run_folder, capsys):
    assert main(["export", str(run_folder / "config.yaml"), "--format", "mindir", "--output", "-out"]) == 2
    assert "expected one argument; one that begins with a dash is given as --output=-NAME" in capsys.readouterr().err


def test_safetensors_hold_every_weight(run_folder, tmp_path, capsys):
    folder = tmp_path / "weights"
    assert main(["export", str(run_folder / "config.yaml"), "--format", "safetensors", "--output", str(folder)]) == 0
    size = sum(len(file.read_bytes()) for file in folder.iterdir()) / 1e6
    assert capsys.readouterr().out == f"exported: 3 files, {size:.1f} MB, in {folder}\n"
    found = load_file(str(folder / "model.safetensors"))
    model = load_model(run_folder)
    by_id = np.argsort(
        model.network.blocks[0].feed_forward.experts.local_experts
    )  # banks lie in the order of the placement
    assert set(found) == {parameter.name for parameter in model.network.get_parameters()}
    for parameter in model.network.get_parameters():
        value = parameter.asnumpy()
        np.testing.assert_array_equal(found[parameter.name], value[by_id] if ".experts." in parameter.name else value)
    assert (folder / "config.yaml").is_file() and (folder / "tokenizer.model").is_file()


@pytest.mark.parametrize(
    "words, told",
    [
        (["--format", "safetensors", "--rows", "2"], "--rows is given with --format safetensors"),
        (["--format", "mindir", "--length", "33"], "--length is 33; expected 2 to 32"),
        (["--format", "safetensors", "--dense-part"], "--dense-part is given with --format safetensors"),
        (["--format", "mindir", "--dense-part"], "--dense-part is given with --format mindir"),
        (["--format", "hf-pangu-alpha", "--length", "9"], "--length is given with --format hf-pangu-alpha"),
        (["--format", "hf-pangu-alpha"], "have experts, for which --format hf-pangu-alpha has no place"),
        (["--format", "mindformers-pangu-alpha"], "have experts, for which --format mindformers-pangu-alpha has no"),
        (["--format", "mindir", "--output", "."], "--output .: is there already"),
    ],
)
def test_bad_input(run_folder, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run_folder / "config.yaml"), "--output", "new", *words]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_export(tmp_path):
    with pytest.raises(InputError, match="expected a folder of `pangu-sigma export`"):
        load_exported(tmp_path)
    (tmp_path / "generation.json").write_text("[]")
    with pytest.raises(InputError, match="not of this release"):
        load_exported(tmp_path)
