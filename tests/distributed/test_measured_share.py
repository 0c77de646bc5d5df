"""Two ranks on two nodes, whose tier between nodes shrinks to nothing when their tokens stay at home."""

import json

from helpers.launched import launch_two

STEPS = 4


def test_nothing_travels_between_nodes_once_all_tokens_stay(tiny_data, tmp_path):
    """From step 3 on the local term keeps every token at home, which is measured before steps 1 and 3. The bytes are
    those that the ranks' sockets counted.
    """
    run = tmp_path / "run"
    job = launch_two(
        tmp_path,
        moe={
            "num_experts": 4,
            "num_groups": 2,
            "router": {"type": "locmoe", "locality_bias": {"kind": "margin", "strength": 1.0, "start_step": 2}},
            "dispatch": {"type": "hierarchical"},
            "capacity": {"factor": 2.0, "measured_share": {"interval": 2}},
        },
        data={"path": str(tiny_data)},
        optimizer={"schedule": "constant", "warmup_steps": 0, "learning_rate": 0.01},
        train={"steps": STEPS, "global_batch_size": 4, "eval_rows": 0, "cosines": False, "output_dir": str(run)},
        runtime={"mode": "pynative"},  # three graphs fewer; a run that changes them: tests/end_to_end/test_train.py
    )
    assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-2000:]
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shares = [record["moe/local_share"] for record in found]
    assert shares[0] == shares[1] < 1.0 and shares[2:] == [1.0, 1.0]
    between = [record["comm/all_to_all/inter_node(B)"] for record in found]
    # To two experts of the other node and back, forward and backward, from each of two ranks: factor 2 for an even
    # spread, half of 64 tokens over two experts, is 32 slots of 16 float32.
    assert between[1] == 2 * 4 * 2 * 32 * 16 * 4
    assert (
        0 < between[2] < between[1] and between[3] == 0
    )  # in step 3 the measurement itself, which is one forward pass
    assert found[1]["moe/local_fraction"] < 1.0 and all(record["moe/drop_fraction"] == 0.0 for record in found)
