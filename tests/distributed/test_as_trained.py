"""`eval --as-trained` on one process finds what two ranks measured themselves, where slots are so few that tokens are
dropped.
"""

import json
import sys

import pytest

from helpers.launched import launch_two, run_command

LOCAL_TERM = {"kind": "margin", "strength": 0.5}
CASES = {
    "two tiers": {
        "num_experts": 4,
        "router": {"type": "locmoe", "locality_bias": LOCAL_TERM},
        "dispatch": {"type": "hierarchical"},
        "capacity": {"mode": "adaptive", "evaluation_factor": 1.0, "local_share": 0.7},
    },
    # Of the four experts of a group two are on each node: a token with three leaves its own. There are slots of experts
    # for all and of copies for few, so that what is dropped has no copy.
    "one copy a node": {
        "num_experts": 8,
        "router": {"type": "switch", "top_k": 3, "locality_bias": LOCAL_TERM},
        "dispatch": {"type": "node_dedup"},
        "capacity": {"evaluation_factor": 4.0, "node_share": 0.05},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(tiny_data, tmp_path, name):
    """Ten rows: five a rank, in micro-batches of two, the last of which are filled up. Float32 sums in another order
    are all that differs: 1e-6 of a loss, whose exponential is compared.
    """
    run = tmp_path / "run"
    job = launch_two(
        tmp_path,
        moe={"num_groups": 2, **CASES[name]},
        data={"path": str(tiny_data)},
        optimizer={"schedule": "constant", "warmup_steps": 0, "learning_rate": 0.01},
        train={"steps": 2, "global_batch_size": 4, "eval_rows": 10, "cosines": False, "output_dir": str(run)},
        runtime={"mode": "pynative"},  # `eval` too, which is compiled in tests/end_to_end/test_train.py
    )
    assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-2000:]
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
    job = run_command(tmp_path, *evaluate)
    assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-2000:]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads((run / "evaluation" / "step_2_as_trained" / "results.json").read_text())
    pairs = {"validation": "valid/perplexity", "validation-no-local": "valid/local_term_off/perplexity"}
    assert set(found["results"]) == set(pairs)
    for measurement, metric in pairs.items():
        assert found["results"][measurement]["all"]["perplexity"]["value"] == pytest.approx(last[metric], rel=5e-6)
        assert "were dropped" in found["notes"][measurement][0]  # or any number of slots would do
