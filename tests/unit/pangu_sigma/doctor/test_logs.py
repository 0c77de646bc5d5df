"""Operators on the CPU, by what MindSpore's lines of them look like (its source and its users' logs; not seen here)."""

import os

import pytest

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.doctor.findings import OK, UNKNOWN, WARNING
from pangu_sigma.doctor.logs import check_logs

INFO = (
    "[INFO] DEVICE(1769,ffff87c70ac0,python):2026-01-21-16:04:30.001.890 [mindspore/ccsrc/plugin/ascend/"
    "kernel_executor/kernel_select_ascend.cc:512] TryBackoffCpu] Try to use backoff CPU kernel, "
    "node:Default/network-A/{}\n"
)
CAST = (
    "[WARNING] DEVICE(1769,ffff87c70ac0,python):2022-12-21-16:04:30.001.890 [mindspore/ccsrc/plugin/device/ascend/hal/"
    "device/kernel_select_ascend.cc:330] FilterRaisedOrReducePrecisionMatchedKernelInfo] Operator:[Default/network-"
    "WithLossCell/{}] don't support int64, reduce precision from int64 to int32.\n"
)


@pytest.fixture
def write(tmp_path):
    def write(launch, name, *lines):
        path = tmp_path / "logs" / launch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("step 1/20 loss 5.2\n" + "".join(lines), encoding="utf-8")
        return path

    return write


def findings(tmp_path):
    return check_logs(config_from_dict({"train": {"output_dir": str(tmp_path)}}))


def test_operators_are_counted_by_kind_over_all_ranks(tmp_path, write):
    write(
        "launch_1",
        "node_0/worker_0.log",
        INFO.format("TopK-op12"),
        INFO.format("b-B/TopK-op13"),
        INFO.format("Erfc-op1"),
    )
    write("launch_1", "node_1/worker_8.log", INFO.format("TopK-op12"), CAST.format("GatherD-op5273"))
    on_cpu, cast = findings(tmp_path)
    assert on_cpu.level == cast.level == WARNING
    assert on_cpu.found.startswith("4 operators") and "TopK (3), Erfc (1)" in on_cpu.found
    assert "MS_DISABLE_KERNEL_BACKOFF=1" in on_cpu.fix
    assert "1 operators" in cast.found and "GatherD int64 to int32 (1)" in cast.found


def test_a_process_alone_has_no_log_of_the_device(tmp_path, write):
    """Its own messages are in rank_0.log; MindSpore's went to its terminal."""
    launched = write("launch_1", "worker_0.log", INFO.format("TopK-op12"))
    write("launch_2", "rank_0.log")
    os.utime(launched.parent, (1, 1))
    (found,) = findings(tmp_path)
    assert found.level == WARNING and "launch_1" in found.found


def test_only_the_newest_launch_counts(tmp_path, write):
    old = write("launch_1", "worker_0.log", INFO.format("TopK-op12"))
    write("launch_2", "worker_0.log")
    os.utime(old.parent, (1, 1))
    (found,) = findings(tmp_path)
    assert found.level == OK and "launch_2" in found.found


@pytest.mark.parametrize("launch", [None, "launch_1"])
def test_without_logs_nothing_is_said(tmp_path, launch):
    if launch:
        (tmp_path / "logs" / launch).mkdir(parents=True)
    assert [found.level for found in findings(tmp_path)] == [UNKNOWN]
    assert [found.level for found in check_logs(None)] == [UNKNOWN]
