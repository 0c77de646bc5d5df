"""Random trees of a user's files in and around everything that commands write, then random sequences of commands:
afterwards every file is there with its content, and every link points where it did.

Preparing, checkpoints, exports, reports and their files are the real ones; the compiled steps, about which this is not,
are left out.
"""

import contextlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pangu_sigma.cli.main import main
from pangu_sigma.doctor import software as doctor_software
from pangu_sigma.train.engine import StepResult, TrainEngine

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 60)) // 10

# Names that commands use, as a user might have used them before, and names of a user's own.
NAMES = (
    "NOTES.txt",
    "thesis",
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "report.html",
    "manifest.json",
    "tokenizer.model",
    "token_counts.npy",
    "train-a.mindrecord",
    "results.json",
    "validation.jsonl",
    "cosines.json",
    "environment.json",
    "runs.csv",
    ".pangu-sigma.lock",
    "model.safetensors",
    "shard_0.safetensors",
    ".hidden",
)
# Folders of a workspace that commands write into, and some that they have no reason to touch.
PLACES = (
    "",
    "data",
    "data/raw",
    "run",
    "run/checkpoints",
    "run/checkpoints/step_1",
    "run/checkpoints/step_1.part",
    "run/logs",
    "run/evaluation/step_2",
    "run2",
    "out",
    "out/sub",
    "texts",
    "data.writing",
    "cmp",
    "cmp/runs",
    "run/profile",
    "run/checkpoints/step_2.aside",
)
LINKS = ("lnk", "data", "run", "out/link", "texts/more", "run/checkpoints", "s.json", "page.html")
COMMANDS = (
    "prepare c.yaml",
    "prepare c.yaml --set data.prepare.validation_fraction=0.3",
    "prepare c.yaml --set data.path=lnk",
    "prepare c.yaml --set data.path=out",
    "prepare c.yaml --set data.path=run",
    "train c.yaml",
    "train c.yaml --set checkpoint.resume=auto",
    "train c.yaml --set train.output_dir=run2",
    "train c.yaml --set train.output_dir=lnk",
    "train c.yaml --set train.output_dir=lnk --set checkpoint.resume=auto",
    "train c.yaml --set train.steps=3 --set checkpoint.keep_last=1 --set checkpoint.resume=auto",
    "train c.yaml --set train.output_dir=data/run",
    "train c.yaml --set train.output_dir=out --set checkpoint.resume=run/checkpoints/step_1",
    "train c.yaml --set checkpoint.resume=run/checkpoints/step_1",
    "train c.yaml --set train.output_dir=.",
    "ckpt reshard run out/r --shards 1",
    "ckpt reshard run out",
    "ckpt reshard run run/checkpoints/step_1 --shards 1",
    "ckpt extract run out/sub --domain a",
    "export c.yaml --set checkpoint.resume=auto --format safetensors --output out",
    "export c.yaml --set checkpoint.resume=auto --format safetensors --output out/e",
    "report run",
    "report run run2",
    "report run --output page.html",
    "report run --output c.yaml",
    "report run --output data/manifest.json",
    "summary run --output s.json",
    "summary run --output run/summary.json",
    "summary run --output NOTES.txt",
    "watch run --once",
    "config c.yaml",
    "plan c.yaml",
    "doctor c.yaml",
)


@contextlib.contextmanager
def inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a configuration, texts and a tokenizer for them, which every example starts from."""
    folder = tmp_path_factory.mktemp("fuzz") / "start"
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(60)])
    for domain in ("a", "b"):
        (folder / "texts" / domain).mkdir(parents=True)
        for number in range(8):
            (folder / "texts" / domain / f"{number}.txt").write_text(" ".join(generator.choice(words, 60)))
    config = {
        "model": {"hidden_size": 8, "num_heads": 1, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 16},
        "moe": {"num_experts": 2, "num_groups": 2, "router": {"type": "hash"}},
        "data": {
            "path": "data",
            "prepare": {"sources": {"a": "texts/a", "b": "texts/b"}, "vocab_size": 300, "validation_fraction": 0.4},
        },
        "optimizer": {"warmup_steps": 1},
        "checkpoint": {"interval": 1},
        "train": {"steps": 2, "global_batch_size": 2, "eval_rows": 2, "cosines": False, "output_dir": "run"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    with inside(folder), contextlib.redirect_stdout(io.StringIO()):
        assert main(["prepare", "c.yaml"]) == 0
    shutil.copyfile(folder / "data" / "tokenizer.model", folder / "given.model")
    shutil.rmtree(folder / "data")
    config["data"]["prepare"]["tokenizer"] = "given.model"
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def no_graphs(monkeypatch):
    """Steps and evaluations that compute nothing, and a doctor that does not wait for a process which imports
    MindSpore.
    """
    monkeypatch.setattr(doctor_software, "PROGRAM", "")

    def read(self, outputs):
        return StepResult(self.statistics.unpack(np.ones(self.statistics.size)), 1.0, 1.0, 0)

    monkeypatch.setattr(TrainEngine, "launch_step", lambda *_: None)
    monkeypatch.setattr(TrainEngine, "read_step", read)
    monkeypatch.setattr(TrainEngine, "evaluate", lambda self, batches: np.ones(self.statistics.size))


@st.composite
def trees(draw):
    """Files by path with their content, and links by path with their target."""
    files = draw(
        st.dictionaries(
            st.tuples(st.sampled_from(PLACES), st.sampled_from(NAMES)), st.binary(min_size=1, max_size=9), max_size=8
        )
    )
    links = draw(
        st.dictionaries(
            st.sampled_from(LINKS),
            st.sampled_from(("data", "data/raw", "run", "out", "texts", "data/deep", "run2", "NOTES.txt", "nowhere")),
            max_size=3,
        )
    )
    return files, links


def plant(files, links):
    """Makes a tree, as far as it can be made in what is there; returns what there is to lose."""
    for link, target in links.items():
        path = Path(link)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(target, path.parent))
    for (place, name), content in files.items():
        path = Path(place) / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                file.write(content)
    return treasures(files, links)


def treasures(files, links):
    kept = {link: os.readlink(link) for link in links if os.path.islink(link)}
    for (place, name), content in files.items():
        path = Path(place) / name
        if path.is_file() and path.read_bytes() == content:
            kept[str(path)] = content
    return kept


def lost(kept):
    """What is not where it was as it was."""

    def now(path):
        return os.readlink(path) if os.path.islink(path) else Path(path).read_bytes() if os.path.exists(path) else None

    def set_aside(path, content):
        """Whether it lies in what was a checkpoint's place, which a run that goes back to an earlier step sets aside as
        a whole.
        """
        return "/checkpoints/step_" in path and any(
            other.is_file() and other.read_bytes() == content
            for folder in Path(path.partition("/step_")[0]).glob("step_*.aside*")
            for other in folder.rglob(Path(path).name)
        )

    return {
        path: (content, now(path))
        for path, content in kept.items()
        if now(path) != content and not set_aside(path, content)
    }


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.one_of(st.sampled_from(COMMANDS), st.sampled_from(COMMANDS), trees()), min_size=3, max_size=8),
    first=trees(),
)
def test_no_file_of_others_is_removed_or_overwritten(workspace, no_graphs, tmp_path_factory, steps, first):
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(workspace, folder, dirs_exist_ok=True)
    original = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with inside(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        kept = {**original, **plant(*first)}
        for step in steps:
            if isinstance(step, str):
                status = main(step.split())
                assert status in (0, 1, 2) and "Traceback" not in errors.getvalue(), (step, errors.getvalue())
            else:
                kept.update(plant(*step))
            assert not lost(kept), step
    shutil.rmtree(folder)
