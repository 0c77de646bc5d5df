"""Comparison files, and run folders written by hand."""

import json

import pytest
import yaml

from pangu_sigma.tools.compare.plan import load_plan
from pangu_sigma.tools.compare.runner import folder_of

BASE = {"model": {"hidden_size": 16, "num_heads": 2, "sequence_length": 32}, "moe": {"num_experts": 4},
        "optimizer": {"warmup_steps": 1}, "train": {"steps": 10, "global_batch_size": 4}, "data": {"path": "absent"}}


@pytest.fixture
def write_plan(tmp_path):
    """Writes a comparison of two variants (or as changed; None leaves a key out) and its base; returns the file's name."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def _write(**changed):
        content = {"base": str(tmp_path / "base.yaml"), "seeds": [1],
                   "variants": {"hash": {"moe.router.type": "hash"}, "locmoe": {"moe.router.type": "locmoe"}}, **changed}
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False))
        return str(path)

    return _write


@pytest.fixture
def make_plan(write_plan):
    return lambda **changed: load_plan(write_plan(**changed))


@pytest.fixture
def write_run(tmp_path):
    """Leaves what a finished run leaves, in tmp_path/out; other files by name (without .json) and content."""

    def _write(run, records, **files):
        folder = folder_of(tmp_path / "out", run)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        note = {"settings": run.settings, "status": "finished"}
        for name, content in {"run": note, "summary": {"router": "x", "unigram_perplexity": 900.0}, **files}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return _write
