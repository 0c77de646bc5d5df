"""`eval --as-trained` on one process finds what two ranks measured themselves, where slots are so few that tokens are
dropped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds; compilation of two workers on slow cores is most of it
TWO_TIERS = {
    "router": {"type": "locmoe", "local_term": {"kind": "margin", "strength": 0.5}},
    "dispatch": {"type": "hierarchical"},
    "capacity": {"mode": "adaptive", "evaluation_factor": 1.0, "local_share": 0.7},
}


def test_two_ranks(tiny_data, tmp_path):
    """Ten rows: five a rank, in micro-batches of two, the last of which are filled up. Float32 sums in another order
    are all that differs: 1e-6 of a loss, whose exponential is compared.
    """
    run = tmp_path / "run"
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "hidden_size": 16,
                    "num_heads": 2,
                    "dense_layers": 0,
                    "sparse_layers": 1,
                    "sequence_length": 32,
                },
                "moe": {"num_experts": 4, "num_groups": 2, **TWO_TIERS},
                "parallel": {"expert": 2, "ranks_per_node": 1},
                "data": {"path": str(tiny_data)},
                "optimizer": {"schedule": "constant", "warmup_steps": 0, "learning_rate": 0.01},
                "train": {
                    "steps": 2,
                    "global_batch_size": 4,
                    "eval_rows": 10,
                    "cosines": False,
                    "output_dir": str(run),
                },
            }
        )
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    train = ["bash", str(ROOT / "scripts" / "train_msrun.sh"), "--workers", "2", str(tmp_path / "config.yaml")]
    evaluate = [
        sys.executable,
        "-m",
        "pangu_sigma",
        "eval",
        str(run / "config.yaml"),
        "--set",
        "checkpoint.resume=auto",
        "--as-trained",
    ]
    for command in (train, evaluate):
        job = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
        assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-2000:]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads((run / "evaluation" / "step_2_as_trained" / "results.json").read_text())
    pairs = {"validation": "valid/perplexity", "validation-no-local": "valid/local_term_off/perplexity"}
    assert set(found["results"]) == set(pairs)
    for measurement, metric in pairs.items():
        assert found["results"][measurement]["all"]["perplexity"]["value"] == pytest.approx(last[metric], rel=5e-6)
        assert "were dropped" in found["notes"][measurement][0]  # or any number of slots would do
