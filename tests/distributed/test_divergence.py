"""A job of two ranks that diverges: all end after the same step, with one line, and nothing of the job is left."""

import json
import subprocess

import pytest

from helpers.launched import launch_two


def test_all_ranks_end_alike(tiny_data, tmp_path):
    """It is the loss scale that keeps every step from changing the weights; rates that are too high are tried alone
    (tests/end_to_end/test_divergence.py) and on four ranks (scripts/check_divergence.py).
    """
    run = tmp_path / "run"
    job = launch_two(
        tmp_path,
        moe={"num_experts": 4, "num_groups": 2},
        data={"path": str(tiny_data)},
        optimizer={"schedule": "constant", "warmup_steps": 0, "learning_rate": 1e-3},
        runtime={"precision": "fp16", "loss_scale": {"initial": 1e30}},
        checkpoint={"interval": 1},
        train={
            "steps": 100,
            "global_batch_size": 4,
            "eval_rows": 8,
            "eval_interval": 3,
            "divergence_patience": 3,
            "output_dir": str(run),
        },
    )
    lines = [line for line in job.stderr.splitlines() if "error: " in line]
    assert job.returncode == 1 and len(lines) == 1 and "Traceback" not in job.stdout + job.stderr, (
        job.stdout[-2000:] + job.stderr[-2000:]
    )
    assert "the run diverged: steps 1 to 3: " in lines[0]
    records = [
        json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    summary = json.loads((run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert len(records) == summary["progress/step"] == 3 and summary["status"] == "diverged"
    validated = [record for record in records if "valid/loss" in record]
    assert [record["progress/step"] for record in validated] == [3]
    assert validated[0]["valid/perplexity"] is not None
    kept = sorted(path.name for path in (run / "checkpoints").glob("step_*") if path.suffix == "")
    assert kept == ["step_1", "step_2"]
    left = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True).stdout.split()
    assert not left
