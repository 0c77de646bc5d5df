"""`pangu-sigma train` on a small model, as several files of this folder run it."""

import os

import pytest
import yaml

from pangu_sigma.cli.main import main
from pangu_sigma.config.check_compile import NONE
from pangu_sigma.runtime.compile_cache.executor import cache_in_use, use_compile_cache
from pangu_sigma.runtime.compile_cache.folder import VARIABLE


@pytest.fixture(scope="module", autouse=True)
def kept_graphs_of_runs(tmp_path_factory):
    """Runs take graphs that an earlier run of these tests has compiled, by all that they are made of, such as those of
    the run that they resume. That this changes nothing: test_compile_cache.py, which does not use it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # of all processes of this call of pytest
    before = cache_in_use()
    with pytest.MonkeyPatch.context() as patch:
        if os.environ[VARIABLE] == NONE:
            patch.setenv(VARIABLE, str(shared / "graphs"))
        yield
    use_compile_cache(before)


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
