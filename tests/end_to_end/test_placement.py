"""Rows placed on nodes, which one process plays: the same text is read in every step, by another node."""

import json
import math

import pytest
import yaml

from pangu_sigma.cli.main import main

pytestmark = pytest.mark.compiles

LAYOUT = "moe.logical_topology={world_size: 2, ranks_per_node: 1, expert: 2}"


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """Runs `train` for three steps on one expert group, with overrides; returns the losses of its steps."""
    root = tmp_path_factory.mktemp("placed")
    sources = {domain: str(tiny_data.parent / domain) for domain in ("one", "two")}
    prepare = {
        "sources": sources,
        "vocab_size": 320,
        "validation_fraction": 0.1,
        "document_bytes": 300,
        "clusters": {"count": 2, "within": "domain"},
    }
    config = {
        "model": {"hidden_size": 16, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32},
        "moe": {"num_experts": 4, "num_groups": 1, "router": {"type": "hash"}, "capacity": {"factor": 4.0}},
        "data": {"path": str(root / "data"), "placement": "clustered", "prepare": prepare},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 1},
        "train": {"steps": 3, "global_batch_size": 8, "eval_rows": 8, "cosines": False},
    }
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["prepare", str(path)]) == 0

    def train(name, *overrides):
        words = [word for override in (LAYOUT, *overrides) for word in ("--set", override)]
        assert main(["train", str(path), "--set", f"train.output_dir={root / name}", *words]) == 0
        lines = (root / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss/task"] for line in lines]

    return train


def test_placement_changes_no_loss_and_a_run_resumes(run, capsys):
    """Routes follow from ids and nothing is dropped, so that it is of no consequence on which node a row is."""
    shuffled = run("shuffled", "data.placement=shuffled")
    run("clustered", "train.stop_after=2", "checkpoint.interval=2")
    clustered = run("clustered", "checkpoint.interval=2", "checkpoint.resume=auto")
    out = capsys.readouterr()
    assert "resuming from" in out.out and "other rows follow" not in out.out + out.err
    known = ["data.placement=known_routes", "checkpoint.interval=2"]
    run("known", *known, "train.stop_after=2")
    found = run("known", *known, "checkpoint.resume=auto")
    # Sums over the rows of a batch, float32, are taken in another order.
    assert found == pytest.approx(shuffled, rel=1e-5)
    assert len(shuffled) == len(clustered) == 3 and not math.isnan(shuffled[-1])
    assert clustered == pytest.approx(shuffled, rel=1e-5)
