"""Comparison files, and run folders written by hand."""

import json

import pytest
import yaml

from pangu_sigma.tools.compare.plan import load_plan
from pangu_sigma.tools.compare.runner import folder_of

BASE = {"model": {"hidden_size": 16, "num_heads": 2, "sequence_length": 32}, "moe": {"num_experts": 4},
        "optimizer": {"warmup_steps": 1}, "train": {"steps": 10, "global_batch_size": 4}, "data": {"path": "absent"}}
LONG_NAME = "locmoe.hierarchical+two_chunks+capacity_1.0"


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

    def _write(run, records, /, **files):
        folder = folder_of(tmp_path / "out", run)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        note = {"settings": run.settings, "status": "finished"}
        for name, content in {"run": note, "summary": {"router": "x", "unigram_perplexity": 900.0}, **files}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return _write


@pytest.fixture
def whole_plan(make_plan, write_run, made_up_records, made_up_cosines):
    """A comparison of two phases and four variants whose runs, all made up, have everything that a report can show."""
    plan = make_plan(
        seeds=[1, 2, 3], baseline="switch", warmup_steps_ignored=5, cluster={"nodes": 2, "workers_per_node": 2, "rate": "200mbit"},
        base_overrides={"parallel.expert": 4, "moe.capacity.factor": 1.5},
        variants={"switch": {"moe.router.type": "switch"}, "hash": {"moe.router.type": "hash", "moe.capacity.factor": 1.25}, "locmoe": {},
                  LONG_NAME: {"moe.dispatch.type": "hierarchical", "moe.dispatch.chunks": 2, "moe.capacity.factor": 1.0}},
        phases={"quality": {"rate": None, "overrides": {"train.steps": 400}}, "time": {"overrides": {"train.steps": 60}}})
    for run in plan.runs:
        place = plan.variants.index(run.variant)
        counters = [{"node": node, "tx_bytes": {"before": 1000, "after": 1000 + (9 - node) * 10 ** 9 // (place + 1)}} for node in range(2)]
        write_run(run, made_up_records(place, run.seed, run.config.train.steps), cosines=made_up_cosines(place),
                  interfaces={"interfaces": counters})
    return plan
