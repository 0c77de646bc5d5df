"""Ranks of a job of a test's own: processes of this Python that exchange over a mesh, or under msrun, which forms the
cluster that MindSpore's own groups need.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from helpers.ports import free_port

TESTS = Path(__file__).resolve().parents[1]
LIGHT_MSRUN = Path(__file__).with_name("light_msrun")
OF_ALL = {
    "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, LIGHT_MSRUN))),  # tests: what ranks share with them
    "OMP_NUM_THREADS": "1",
    "GLOG_v": "3",
}


def run_under_msrun(ranks, limit, folder, worker, *arguments):
    """Runs a file as `ranks` ranks to their end; returns how that was. Logs are in `folder`; `limit`: seconds."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [
        shutil.which("msrun", path=path),
        f"--worker_num={ranks}",
        f"--local_worker_num={ranks}",
        f"--master_port={free_port()}",
        "--join=True",
        f"--log_dir={folder / 'logs'}",
        *map(str, (worker, *arguments)),
    ]
    environment = {**os.environ, **OF_ALL, "PATH": path}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=limit)


def run_ranks(commands, limit, folder, **settings):
    """Runs a rank for each of `commands`, words after `python`, to its end; one that fails ends the job with its last
    words.

    Args:
        limit: seconds. folder: theirs, with `rank_RANK.log`. settings: of their environment; one that is a list has a
            value for each rank.
    """
    logs = [folder / f"rank_{rank}.log" for rank in range(len(commands))]
    processes = []
    try:
        for rank, (command, log) in enumerate(zip(commands, logs)):
            own = {name: value[rank] if isinstance(value, list) else value for name, value in settings.items()}
            with log.open("w") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, command)],
                        cwd=folder,
                        env={**os.environ, **OF_ALL, **own},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        deadline = time.monotonic() + limit
        for rank, process in enumerate(processes):
            status = process.wait(max(deadline - time.monotonic(), 0.1))
            assert status == 0, f"rank {rank} ended with status {status}:\n{logs[rank].read_text()[-3000:]}"
    finally:
        for process in processes:
            process.kill()
            process.wait()
