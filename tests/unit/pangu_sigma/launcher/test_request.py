"""What `launch` starts ranks with: a run folder, a checkpoint or a configuration, as one rank takes it."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict, save_config
from pangu_sigma.launcher.request import RankCommand

SETTINGS = {
    "model": {"hidden_size": 48, "num_heads": 4, "sequence_length": 32},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": 4, "global_batch_size": 4, "output_dir": "elsewhere"},
    "runtime": {"device": "cpu"},
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    save_config(config_from_dict(SETTINGS), folder / "config.yaml")
    (folder / "metrics.jsonl").touch()
    return str(folder)


@pytest.mark.parametrize("what", [{}, {"bench": "all-to-all"}, {"generate": True}])
def test_a_run_folder(run, what):
    config = RankCommand(run, ("train.seed=7",), **what).read_config(2)
    assert (config.model.hidden_size, config.train.output_dir, config.train.seed) == (48, run, 7)


def test_what_is_none_of_them(tmp_path):
    with pytest.raises(InputError, match="absent"):
        RankCommand(str(tmp_path / "absent")).read_config(2)
