"""The tokenizer lives with the run: what a checkpoint can do after its data were prepared anew with another one."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import yaml

from pangu_sigma.checkpoint.format import crc32
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.cli.main import main

NAME = "tokenizer.model"


def command(*words, status=0):
    assert main([str(word) for word in words]) == status


def losses(run):
    return [json.loads(line)["loss/total"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def text_of(generator, letters):
    words = ["".join(generator.choice(list(letters), 4)) for _ in range(60)]
    return " ".join(generator.choice(words, 600))


def as_before(checkpoint, target):
    """The checkpoint as the release before wrote it: without the tokenizer, and with a manifest that knows of no such
    files.
    """
    shutil.copytree(checkpoint, target)
    (target / NAME).unlink()
    content = json.loads((target / "manifest.json").read_text())
    del content["body"]["files"]
    content["checksum"] = crc32(
        json.dumps(content["body"], sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    )
    (target / "manifest.json").write_text(json.dumps(content))
    return target


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps, saved at two; the data that it was trained on are gone, prepared anew with a document
    more.
    """
    root = tmp_path_factory.mktemp("tokenizers")
    generator = np.random.default_rng(0)
    for domain in ("one", "two"):
        (root / domain).mkdir()
        for number in range(10):
            (root / domain / f"{number}.txt").write_text(text_of(generator, "abcdefghij"))
    (root / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "hidden_size": 16,
                    "num_heads": 2,
                    "dense_layers": 0,
                    "sparse_layers": 1,
                    "sequence_length": 32,
                },
                "moe": {"num_experts": 4, "num_groups": 2},
                "data": {
                    "path": str(root / "data"),
                    "prepare": {
                        "sources": {name: str(root / name) for name in ("one", "two")},
                        "vocab_size": 340,
                        "validation_fraction": 0.1,
                    },
                },
                "optimizer": {"warmup_steps": 1},
                "runtime": {"mode": "pynative"},
                "checkpoint": {"interval": 2},
                "train": {
                    "steps": 4,
                    "global_batch_size": 2,
                    "eval_rows": 4,
                    "cosines": False,
                    "output_dir": str(root / "run"),
                },
            }
        )
    )
    command("prepare", root / "config.yaml")
    command("train", root / "config.yaml")
    shutil.copytree(root / "data", root / "first")
    (root / "one" / "more.txt").write_text(text_of(generator, "klmnopqrst"))
    command("prepare", root / "config.yaml")
    assert (root / "data" / NAME).read_bytes() != (root / "first" / NAME).read_bytes()
    return root / "run"


@pytest.fixture(scope="module")
def config(run):
    return run / "config.yaml"


@pytest.fixture(scope="module")
def tokenizer(run):
    return (run.parent / "first" / NAME).read_bytes()


def test_every_checkpoint_carries_the_tokenizer_that_made_its_data(run, tokenizer, capsys):
    for step in (2, 4):
        assert (run / "checkpoints" / f"step_{step}" / NAME).read_bytes() == tokenizer
        with CheckpointReader.open(run / "checkpoints" / f"step_{step}") as reader:
            assert reader.manifest.files[NAME].bytes == len(tokenizer)
            assert reader.header.data.tokenizer_sha256 == hashlib.sha256(tokenizer).hexdigest()
    command("ckpt", "inspect", run)
    assert f"{NAME}: {len(tokenizer):,} bytes" in capsys.readouterr().out
    command("ckpt", "verify", run)
    assert capsys.readouterr().out.count(NAME) == 2


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage, told",
    [
        (changed, "another checksum"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "was cut off or changed"),
    ],
)
def test_a_damaged_tokenizer_is_damage(run, tmp_path, capsys, damage, told):
    """As of any other file of a checkpoint; answers come from the one before it."""
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints" / "step_4" / NAME)
    command("ckpt", "verify", tmp_path, status=2)
    assert f"step_4/{NAME}: " in capsys.readouterr().err
    command(
        "export",
        run / "config.yaml",
        "--format",
        "safetensors",
        "--output",
        tmp_path / "out",
        "--set",
        f"checkpoint.resume={tmp_path / 'checkpoints' / 'step_4'}",
        status=2,
    )
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
    command(
        "generate",
        run / "config.yaml",
        "--prompt",
        "abcd",
        "--domain",
        "one",
        "--max-new-tokens",
        2,
        "--set",
        f"train.output_dir={tmp_path}",
    )
    assert "trying the checkpoint before it" in capsys.readouterr().err


def test_generate_eval_and_export_use_the_checkpoints_tokenizer(run, config, tokenizer, tmp_path, capsys):
    """And give what they give where the first data are still there."""
    shown = []
    for data in ("data", "first", "nowhere"):
        given = ("--set", f"data.path={run.parent / data}")
        command("generate", config, "--prompt", "abcd efgh", "--domain", "one", "--max-new-tokens", 4, *given)
        shown.append(capsys.readouterr().out)
        text = tmp_path / "text.txt"
        text.write_text("abcd efgh ij " * 12)
        command(
            "eval",
            config,
            "--text",
            f"two={text}",
            "--output",
            tmp_path / data,
            "--set",
            "checkpoint.resume=auto",
            *given,
        )
        shown.append(json.loads((tmp_path / data / "results.json").read_text())["results"])
        capsys.readouterr()
    assert shown[:2] == shown[2:4] == shown[4:]
    command("export", config, "--format", "safetensors", "--output", tmp_path / "weights")
    assert (tmp_path / "weights" / NAME).read_bytes() == tokenizer


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--set", "checkpoint.resume=auto"),
        ("eval", "--validation", "--set", "checkpoint.resume=auto"),
        ("train", "--set", "train.output_dir=other", "--set", "checkpoint.initial={step}"),
    ],
)
def test_what_needs_the_rows_says_what_differs_and_how_to_go_on(run, config, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    step = run / "checkpoints" / "step_4"
    before = losses(run)
    command(words[0], config, *(word.format(step=step) for word in words[1:]), status=2)
    told = capsys.readouterr().err
    assert f"data.path: {run.parent / 'data'} has another tokenizer than {step} was trained with (sha256 " in told
    assert f"pangu-sigma prepare CONFIG --set data.prepare.tokenizer={step / NAME}" in told and told.count("\n") == 1
    assert losses(run) == before and not list(tmp_path.iterdir())


def test_as_told_the_run_goes_on(run, config, tmp_path, capsys):
    """With the text of today in the tokens of then; and with the first data, as if nothing had happened."""
    step = run / "checkpoints" / "step_2"
    command(
        "prepare", config, "--set", f"data.prepare.tokenizer={step / NAME}", "--set", f"data.path={tmp_path / 'again'}"
    )
    command(
        "train",
        config,
        "--set",
        f"checkpoint.resume={step}",
        "--set",
        f"data.path={tmp_path / 'again'}",
        "--set",
        f"train.output_dir={tmp_path / 'on'}",
    )
    assert "prepared data is" in capsys.readouterr().err
    assert len(losses(tmp_path / "on")) == 2 and (tmp_path / "on" / "summary.json").is_file()
    assert (tmp_path / "on" / "checkpoints" / "step_4" / NAME).read_bytes() == (step / NAME).read_bytes()


def test_checkpoints_of_the_release_before_go_on_to_the_bit(run, config, tmp_path, capsys):
    old = as_before(run / "checkpoints" / "step_2", tmp_path / "step_2")
    command("ckpt", "verify", old)
    first = ("--set", f"data.path={run.parent / 'first'}")
    command(
        "train", config, "--set", f"checkpoint.resume={old}", "--set", f"train.output_dir={tmp_path / 'on'}", *first
    )
    assert losses(tmp_path / "on") == losses(run)[2:]
    left, right = (CheckpointReader.open(folder / "checkpoints" / "step_4") for folder in (run, tmp_path / "on"))
    with left, right:
        for name in left.names():
            np.testing.assert_array_equal(left.read(name), right.read(name), err_msg=name)
    capsys.readouterr()
    command("ckpt", "diff", run / "checkpoints" / "step_2", old, status=1)
    assert capsys.readouterr().out.splitlines() == [
        f"file {NAME}: {(run.parent / 'first' / NAME).stat().st_size} bytes, CRC-32 "
        f"{crc32((run.parent / 'first' / NAME).read_bytes())} | absent"
    ]
    command("generate", config, "--prompt", "abcd", "--domain", "one", "--set", f"checkpoint.resume={old}", status=2)
    assert "not the file that" in capsys.readouterr().err
    command(
        "train", config, "--set", f"checkpoint.resume={old}", "--set", f"train.output_dir={tmp_path / 'off'}", status=2
    )
    assert "which a checkpoint of this age does not hold" in capsys.readouterr().err


def test_what_is_made_of_a_checkpoint_carries_its_tokenizer(run, tokenizer, tmp_path):
    command("ckpt", "reshard", run, tmp_path / "resharded", "--shards", 2)
    command("ckpt", "extract", run, tmp_path / "extracted", "--domain", "two")
    for folder in ("resharded", "extracted"):
        assert (tmp_path / folder / NAME).read_bytes() == tokenizer
        command("ckpt", "verify", tmp_path / folder)
        with CheckpointReader.open(tmp_path / folder) as reader:
            assert list(reader.manifest.files) == [NAME]


def test_a_named_tokenizer_that_is_another_is_refused(run, config, capsys):
    command("generate", config, "--prompt", "a", "--domain", "one", "--tokenizer", run.parent / "data" / NAME, status=2)
    assert "expected none named, for the checkpoint holds it" in capsys.readouterr().err
