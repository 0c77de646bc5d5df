"""Starts the jobs whose results the tests of this folder look at."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.ports import free_port
from helpers.traffic import CASES, configuration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def run_job():
    """`run_job(ranks, limit, folder, worker, *arguments)` runs a worker file of this folder to its end: one process, or
    several under msrun. Files and logs are in `folder`; it may take `limit` seconds.
    """

    def run(ranks, limit, folder, worker, *arguments):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),  # tests: what workers share with tests
            "GLOG_v": "3",
            "OMP_NUM_THREADS": "1",
            "LOCMOE_MESH_SECRET": secrets.token_hex(32),
            "LOCMOE_MESH_PORT": str(free_port()),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [str(Path(__file__).with_name(worker)), *map(str, arguments)]
        launcher = [
            "msrun",
            f"--worker_num={ranks}",
            f"--local_worker_num={ranks}",
            "--master_addr=127.0.0.1",
            f"--master_port={free_port()}",
            "--join=True",
            f"--log_dir={folder / 'logs'}",
            "python",
        ]
        job = subprocess.run(
            [*(launcher if ranks > 1 else [sys.executable]), *command],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=limit,
        )
        assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]

    return run


@pytest.fixture(scope="session")
def layouts(run_job, tiny_data, tmp_path_factory):
    """The folder that `layouts_worker.py` leaves: of four ranks, of two, and of one process."""
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "cases.json").write_text(json.dumps({name: configuration(name) for name in CASES}))
    for ranks in (4, 2, 1):  # seconds, on slow cores
        run_job(ranks, 1500, folder, "layouts_worker.py", tiny_data, folder, folder / "cases.json")
    return folder
