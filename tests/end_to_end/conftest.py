"""`pangu-sigma train` on a small model, as several files of this folder run it."""

import pytest
import yaml

from pangu_sigma.cli.main import main


@pytest.fixture(scope="module")
def train(tiny_data, tmp_path_factory):
    """Runs the command with overrides in a folder of its own (or a given one); returns the folder."""
    config = {
        "model": {
            "hidden_size": 16,
            "num_heads": 2,
            "dense_layers": 0,
            "sparse_layers": 1,
            "sequence_length": 32,
            "hidden_dropout": 0.1,
        },
        "moe": {"num_experts": 4, "num_groups": 2, "router": {"type": "switch", "switch": {"jitter": 0.1}}},
        "data": {"path": str(tiny_data)},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
        "train": {"steps": 6, "global_batch_size": 4, "eval_rows": 8, "log_interval": 2, "cosines": False},
    }
    root = tmp_path_factory.mktemp("runs")
    (root / "config.yaml").write_text(yaml.safe_dump(config))

    def run(name, *overrides):
        folder = root / name
        words = [word for override in overrides for word in ("--set", override)]
        assert main(["train", str(root / "config.yaml"), "--set", f"train.output_dir={folder}", *words]) == 0
        return folder

    run.root = root
    return run
