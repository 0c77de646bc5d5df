"""Ranks of a job that exchange over a mesh: processes of this Python, without a launcher beside them."""

import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


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
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),  # tests: what ranks share with them
                "OMP_NUM_THREADS": "1",
                "GLOG_v": "3",
                **own,
            }
            with log.open("w") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, command)],
                        cwd=folder,
                        env=environment,
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
