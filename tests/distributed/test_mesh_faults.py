"""What goes wrong on one rank ends all ranks in time, each with one line that names itself, the operation and the rank.

Ranks are plain processes; each test waits with a limit, and no process may be left.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from helpers.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("mesh_worker.py")
LIMIT = 40  # seconds; every deadline in here is far below, the rest is for slow machines


class Job:
    """Ranks as processes, all of which are gone when the block ends."""

    def __init__(self, name, world_size, join_timeout=20, collective_timeout=20, parent=0):
        self.port = free_port()
        self.name, self.world_size = name, world_size
        self.settings = [str(value) for value in (join_timeout, collective_timeout, parent)]
        self.processes = {}

    def start(self, *ranks, secret="right"):
        for rank in ranks:
            arguments = [self.name, str(rank), str(self.world_size), str(self.port), *self.settings]
            self.processes[rank] = subprocess.Popen(
                [sys.executable, str(WORKER), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "MESH_SECRET": secret, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )

    def await_ready(self, word="ready"):
        for process in self.processes.values():
            assert process.stdout.readline() == f"{word}\n"

    def ends(self):
        """Exit status and stderr by rank, once all have ended by themselves."""
        results = {}
        for rank, process in self.processes.items():
            _, errors = process.communicate(timeout=LIMIT)
            results[rank] = (process.returncode, errors)
        return results

    def __enter__(self):
        return self

    def __exit__(self, *_):
        left = [rank for rank, process in self.processes.items() if process.poll() is None]
        for process in self.processes.values():
            process.kill()
            process.communicate()
        assert not left, f"ranks {left} were still running"


def assert_one_line(result, *fragments, status=1):
    code, errors = result
    assert len(errors.splitlines()) == 1, errors
    assert code == status, errors
    for fragment in fragments:
        assert fragment in errors


def missing_ranks(errors):
    """The ranks of which a line says that no data came."""
    return [int(rank) for rank in re.search(r"no data from ranks? (\d+(?:, \d+)*)", errors).group(1).split(", ")]


def test_a_job_without_faults_is_silent():
    with Job("brief", 3) as job:
        job.start(0, 1, 2)
        assert job.ends() == {rank: (0, "") for rank in range(3)}


def test_a_killed_worker():
    with Job("work", 4) as job:
        job.start(0, 1, 2, 3)
        job.await_ready()
        job.processes[2].send_signal(signal.SIGKILL)
        ends = job.ends()
    assert ends[2][0] == -signal.SIGKILL
    for rank in (0, 1, 3):
        assert_one_line(ends[rank], f"rank {rank}: ", "all_to_all 'work' on world [0, 1, 2, 3]: lost rank 2")


def test_a_stopped_worker_misses_the_deadline():
    """A process that hangs keeps its connections open: only the deadline can tell.

    A rank that got the last data of the stopped one is a round ahead of a rank that did not, and misses that one too.
    """
    with Job("work", 3, collective_timeout=1.5) as job:
        job.start(0, 1, 2)
        job.await_ready()
        job.processes[1].send_signal(signal.SIGSTOP)
        ends = {rank: job.processes[rank].communicate(timeout=LIMIT)[1] for rank in (0, 2)}
        job.processes[1].send_signal(signal.SIGCONT)
        job.processes[1].communicate(timeout=LIMIT)
    for rank, errors in ends.items():
        assert_one_line((1, errors), f"rank {rank}: all_to_all 'work'", "within 1.5 s")
        assert 1 in missing_ranks(errors), errors


def test_a_worker_that_ends_without_a_word():
    with Job("crash", 3) as job:
        job.start(0, 1, 2)
        ends = job.ends()
    for rank in (0, 2):
        assert_one_line(ends[rank], f"rank {rank}: all_to_all 'work'", "lost rank 1")


def test_a_skipped_collective():
    """Both sides wait, and either deadline may pass first: every line names its own collective and rank 1."""
    with Job("skip", 3, collective_timeout=1.5) as job:
        job.start(0, 1, 2)
        ends = job.ends()
    for rank in (0, 2):
        assert_one_line(
            ends[rank], f"rank {rank}: barrier 'second' on world [0, 1, 2]: no data from rank", "within 1.5 s"
        )
        assert 1 in missing_ranks(ends[rank][1]) or "told by rank 1, barrier 'third'" in ends[rank][1], ends[rank]
    assert_one_line(ends[1], "rank 1: barrier 'third' on world [0, 1, 2]: no data from rank", "within 1.5 s")


def test_a_rank_that_does_not_look_is_ended_by_its_hook():
    with Job("busy", 3) as job:
        job.start(0, 1, 2)
        job.await_ready()
        job.await_ready("begun")
        job.processes[2].send_signal(signal.SIGKILL)
        ends = job.ends()
    assert_one_line(ends[0], "rank 0: ", "lost rank 2")
    assert_one_line(ends[1], "rank 1: after barrier 'first'", "lost rank 2")


def test_a_rank_that_never_joins():
    with Job("work", 4, join_timeout=2) as job:
        job.start(0, 1, 3)
        ends = job.ends()
    for rank in (0, 1, 3):
        assert_one_line(ends[rank], f"rank {rank}: join of the mesh", "rank 2 did not join within 2 s")


def test_a_wrong_secret():
    with Job("work", 3, join_timeout=3) as job:
        job.start(0, 1)
        job.start(2, secret="wrong")
        ends = job.ends()
    assert_one_line(ends[2], "rank 2: join of the mesh", "does not know this job's secret")
    for rank in (0, 1):
        assert_one_line(ends[rank], f"rank {rank}: join of the mesh", "rank 2 did not join within 3 s")


def test_a_port_in_use():
    with Job("work", 2, join_timeout=2) as job, socket.socket() as other:
        other.bind(("127.0.0.1", job.port))
        other.listen()
        job.start(0, 1)
        ends = job.ends()
    assert_one_line(ends[0], f"port in use: 127.0.0.1:{job.port}", status=2)
    assert_one_line(ends[1], "rank 1: join of the mesh", f"127.0.0.1:{job.port}", "cannot reach rank 0 within 2 s")


def test_workers_do_not_outlive_their_launcher():
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with Job("work", 2, parent=launcher.pid) as job:
            job.start(0, 1)
            job.await_ready()
            launcher.kill()
            launcher.wait()
            ends = job.ends()
    finally:
        launcher.kill()
        launcher.wait()
    for rank in (0, 1):
        assert_one_line(ends[rank], f"rank {rank}: ", "all_to_all 'work'", f"(process {launcher.pid}) is gone")
