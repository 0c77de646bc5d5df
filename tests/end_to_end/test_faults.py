"""Training jobs in which a rank dies, never comes, or cannot have its port: one line that says so, in time, nobody
left.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers.ports import free_port
from helpers.processes import is_running
from helpers.ranks import LIGHT_MSRUN
from pangu_sigma.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "scripts" / "train_msrun.sh"
LIMIT = 240  # seconds; compilation of two workers on slow cores is most of it
DEADLINE = 30  # seconds from a rank's death to the end of the job, far above the 2 or 3 it takes


@pytest.fixture
def config(tiny_data, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "hidden_size": 16,
                    "num_heads": 2,
                    "dense_layers": 0,
                    "sparse_layers": 1,
                    "sequence_length": 32,
                },
                "moe": {"num_experts": 4},
                "parallel": {"expert": 2},
                "data": {"path": str(tiny_data)},
                "optimizer": {"schedule": "constant"},
                "runtime": {"join_timeout": 20, "collective_timeout": 20},
                "train": {"steps": 100000, "global_batch_size": 4, "output_dir": str(tmp_path / "run")},
            }
        )
    )
    return path


@pytest.fixture
def environment():
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{LIGHT_MSRUN}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)


def test_a_killed_worker_ends_the_job(config, tmp_path, environment):
    log = tmp_path / "run" / "logs" / "launch_1"
    job = subprocess.Popen(
        ["bash", str(LAUNCHER), "--ranks-per-node", "2", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, LIMIT, "the fourth step")
        workers = dict(line.split("\t") for line in (log / "workers.log").read_text().splitlines())
        os.kill(int(workers["1"]), signal.SIGKILL)
        _, errors = job.communicate(timeout=DEADLINE)
    finally:
        job.kill()
    assert job.returncode == 1
    assert errors.count("\n") == 1 and errors.startswith("pangu-sigma: error: rank 0: ")
    assert "lost rank 1" in errors and any(operation in errors for operation in ("all_to_all", "all_reduce", "barrier"))
    last = (log / "worker_1.log").read_text().splitlines()[-1]
    assert last.startswith("pangu-sigma: error: rank 1: ended without a report of its own; first failure: rank 0: ")
    assert not any(is_running(int(pid)) for pid in workers.values())
    told = [line for line in lines_of_rank(log, 0) if " ERROR " in line]
    assert len(told) == 1 and "lost rank 1" in told[0]


def lines_of_rank(log, rank):
    """The lines of a rank's log file, each of which has its time and the rank."""
    lines = (log / f"rank_{rank}.log").read_text().splitlines()
    assert lines
    for line in lines:
        assert re.match(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} rank {rank} (INFO|WARNING|ERROR) ", line), line
    return lines


def test_a_job_that_is_told_to_stop_ends_well(config, tmp_path, environment):
    """The launcher hands SIGTERM to its ranks, which agree on the step that is the last."""
    job = subprocess.Popen(
        ["bash", str(LAUNCHER), "--ranks-per-node", "2", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, LIMIT, "the fourth step")
        job.send_signal(signal.SIGTERM)
        output, errors = job.communicate(timeout=DEADLINE)
    finally:
        job.kill()
    steps = metrics.read_text().count("\n")
    assert (job.returncode, errors) == (0, "") and f"stopped after step {steps}, as requested" in output
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == f"step_{steps}"
    assert main(["ckpt", "verify", str(checkpoint)]) == 0
    workers = (tmp_path / "run" / "logs" / "launch_1" / "workers.log").read_text().split()[1::2]
    assert len(workers) == 2 and not any(is_running(int(pid)) for pid in workers)
    first, second = (lines_of_rank(tmp_path / "run" / "logs" / "launch_1", rank) for rank in (0, 1))
    assert f"stopped after step {steps}, as requested" in first[-1] and "|" not in output  # no bar in a file
    assert any("compiling the step" in line for line in second)


def test_a_rank_that_never_joins_is_named(config, tmp_path, environment):
    port = free_port()
    alone = {
        **environment,
        "MS_ROLE": "MS_WORKER",
        "RANK_ID": "0",
        "MS_WORKER_NUM": "2",
        "MS_SCHED_HOST": "127.0.0.1",
        "LOCMOE_MESH_PORT": str(port),
        "LOCMOE_MESH_SECRET": "00" * 16,
    }
    job = subprocess.run(
        [sys.executable, "-m", "pangu_sigma", "train", str(config), "--set", "runtime.join_timeout=3"],
        env=alone,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert job.returncode == 1
    assert (
        job.stderr.count("\n") == 1
        and "rank 0" in job.stderr
        and "join" in job.stderr
        and "1" in job.stderr.split("rank 0")[1]
    )
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_named(config, tmp_path, environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job = subprocess.run(
            ["bash", str(LAUNCHER), "--ranks-per-node", "2", "--port", str(port), str(config)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    assert job.returncode == 2
    assert job.stderr.count("\n") == 1 and f"127.0.0.1:{port}" in job.stderr
