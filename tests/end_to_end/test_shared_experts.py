"""Shared experts and eight experts a token through every command: the lines of docs/shared_experts.md, as they stand
there, in one process and operator by operator, so that hardly anything is compiled.
"""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.cli.main import main
from pangu_sigma.config.load import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "configs" / "shared_experts.yaml"
BLOCK = re.search(r"```bash\n(.*?)```", (REPOSITORY / "docs" / "shared_experts.md").read_text(), re.DOTALL)[1]
LINES = [line for line in BLOCK.splitlines() if line.startswith("pangu-sigma")]
# Its data is here already. What compiles is run elsewhere: graphs for Ascend with as many experts a token beside shared
# ones in tests/distributed/test_audit.py, cached decoding with shared ones in tests/unit/pangu_sigma/inference.
LEFT_OUT = ("prepare", "audit", "export configs/shared_experts.yaml --format mindir")
SHARED = "blocks.1.feed_forward.shared_experts"


@pytest.fixture(scope="module")
def place(tiny_data, tmp_path_factory):
    """The folder in which all lines were run; what each printed."""
    folder, monkeypatch = tmp_path_factory.mktemp("shared"), pytest.MonkeyPatch()
    (folder / "configs").mkdir()
    given = yaml.safe_load(CONFIG.read_text())
    given["runtime"] = {"mode": "pynative"}
    (folder / "configs" / CONFIG.name).write_text(yaml.safe_dump(given))
    (folder / "data").mkdir()
    (folder / given["data"]["path"]).symlink_to(tiny_data)
    monkeypatch.chdir(folder)
    for line in LINES:
        words = shlex.split(line)[1:]
        if not " ".join(words).startswith(LEFT_OUT):
            assert main(words) == 0, line
    yield folder
    monkeypatch.undo()


def tensors(folder):
    """Of its newest checkpoint, without what only training needs."""
    with CheckpointReader.open(folder) as reader:
        return {name: reader.read(name) for name in reader.names() if not name.startswith(("adam", "capacity"))}


def test_the_lines_are_of_what_they_say():
    config = load_config(CONFIG)
    assert config.moe.shared_experts == 2 and config.moe.router.top_k == 8
    assert len(LINES) >= 18 and all(any(line.split(" ", 1)[1].startswith(one) for line in LINES) for one in LEFT_OUT)


def test_training_went_on_where_it_was_stopped(place):
    steps = [json.loads(line) for line in (place / "runs/shared_experts/metrics.jsonl").read_text().splitlines()]
    assert [one["progress/step"] for one in steps] == [1, 2, 3, 4]
    assert all(np.isfinite(one["loss/task"]) for one in steps)
    before, after = (tensors(place / f"runs/shared_experts/checkpoints/step_{step}") for step in (2, 4))
    assert before.keys() == after.keys()
    for part in ("w_in.weight", "w_in.bias", "w_out.weight", "w_out.bias"):
        assert (before[f"{SHARED}.{part}"] != after[f"{SHARED}.{part}"]).any()  # trained, like the routed ones


def test_the_domains_model_keeps_shared_experts_and_its_own(place):
    whole, part = tensors(place / "runs/shared_experts/checkpoints/step_4"), tensors(place / "runs/extracted")
    for name in [name for name in whole if SHARED in name]:
        np.testing.assert_array_equal(part[name], whole[name])
    assert {name.split("@")[1] for name in part if "@" in name} == {str(expert) for expert in range(16)}


def test_heirs_begin_with_shared_experts_that_add_nothing(place):
    heir, grown = tensors(place / "runs/inherited"), tensors(place / "runs/grown/checkpoints/step_4")
    assert not heir[f"{SHARED}.w_out.weight"].any() and heir[f"{SHARED}.w_in.weight"].any()
    assert grown[f"{SHARED}.w_out.weight"].any()
