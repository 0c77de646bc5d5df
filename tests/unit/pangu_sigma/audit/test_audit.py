"""Which job is audited, and what is refused before a rank starts. tests/distributed/test_audit.py compiles graphs."""

import pytest

from helpers.jobs import make_config
from locmoe_ops.errors import InputError
from pangu_sigma.audit import audit as command
from pangu_sigma.audit.audit import audited_job

__all__ = ["make_config"]


@pytest.mark.parametrize(
    ("parallel", "nodes", "devices", "expected"),
    [
        ({"expert": 4}, None, None, (4, 4)),  # all ranks on one node
        ({"expert": 4, "ranks_per_node": 2}, None, None, (4, 2)),  # the fewest nodes that hold all experts
        ({"expert": 2, "tensor": 2}, None, 2, (4, 2)),
        ({"expert": 2}, 2, 2, (4, 2)),
    ],
)
def test_ranks_of_the_job(make_config, parallel, nodes, devices, expected):
    job = audited_job(make_config(parallel=parallel), nodes, devices)
    assert (job.topology.world_size, job.topology.ranks_per_node) == expected
    assert (job.config.runtime.device, job.backend) == ("ascend", "hccl")


@pytest.mark.parametrize(
    ("nodes", "devices", "fragment"),
    [(None, None, "one rank exchanges nothing"), (16, 8, "16 nodes of 8 ranks are 128 processes")],
)
def test_too_few_or_too_many_ranks(make_config, nodes, devices, fragment):
    with pytest.raises(InputError, match=fragment):
        audited_job(make_config(), nodes, devices)


def test_a_job_that_compiles_nothing(make_config):
    with pytest.raises(InputError, match="runtime.mode is pynative, which has no graphs to read; expected graph"):
        audited_job(make_config(parallel={"expert": 2}, runtime={"mode": "pynative"}), None, None)


def test_graphs_are_kept_in_a_new_folder_only(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "export", lambda jobs, timeout: pytest.fail("ranks were started"))
    with pytest.raises(InputError, match="--keep: cannot make .* expected the path of a new folder"):
        command.audit(make_config(parallel={"expert": 2}), None, None, False, str(tmp_path), 1.0)


def test_the_log_of_a_rank_names_its_last_error(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "worker_1.log").write_text("[ERROR] noise Error: no\nValueError: first\nRuntimeError: last\n")
    assert command._last_error(tmp_path, 1) == "RuntimeError: last"
    assert command._last_error(tmp_path, 0) == "its log names no error"


def test_workers_find_the_package():
    assert (command.REPOSITORY / "pangu_sigma" / "audit" / "worker.py") == command.WORKER
