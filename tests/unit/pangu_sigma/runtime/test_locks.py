"""A folder is one process's until that is gone, however it goes; who has it is named."""

import errno
import fcntl
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from helpers.contender import contend
from locmoe_ops.errors import InputError
from pangu_sigma.runtime.locks import FILE, FolderLock

HOLDER = """
import sys, time
from pathlib import Path
from pangu_sigma.runtime.locks import FolderLock
with FolderLock(Path(sys.argv[1]), "train.output_dir", shared="shared" in sys.argv):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts processes that hold `tmp_path/run`."""
    started = []

    def start(*words, prefix=()):
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", HOLDER, str(tmp_path / "run"), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def lock(tmp_path, **options):
    return FolderLock(tmp_path / "run", "train.output_dir", **options)


def test_alone_and_without_a_trace(tmp_path):
    with lock(tmp_path) as held:
        assert held.descriptor is not None and [path.name for path in (tmp_path / "run").iterdir()] == [FILE]
        with pytest.raises(InputError, match=f"train.output_dir: .*/run is in use by process {os.getpid()} on "):
            lock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_what_has_come_to_be_in_the_folder_keeps_it(tmp_path):
    with lock(tmp_path):
        (tmp_path / "run" / "metrics.jsonl").write_text("x")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_living_holder_is_named_and_a_dead_one_frees_it(tmp_path, hold):
    process = hold()
    with pytest.raises(InputError) as refused:
        lock(tmp_path).__enter__()
    assert f"process {process.pid} on {socket.gethostname()} since 20" in str(refused.value)
    process.kill()
    process.wait()
    assert (tmp_path / "run" / FILE).exists()  # it took nothing away with it
    with lock(tmp_path):
        pass
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a host name of its own needs root")
def test_a_holder_on_another_host_is_named_by_it(tmp_path, hold):
    hold(prefix=("unshare", "--uts", "sh", "-c", 'hostname far-node && exec "$@"', "sh"))
    with pytest.raises(InputError, match="in use by process .* on far-node since"):
        lock(tmp_path).__enter__()


def test_waits_as_long_as_it_is_told(tmp_path, hold):
    process = hold()
    process.stdin.write(b"\n")
    process.stdin.flush()
    with lock(tmp_path, wait_s=30.0):
        assert process.wait(30) == 0


@pytest.mark.parametrize("leaves", [False, True])
def test_a_holder_that_has_not_signed_yet_is_given_a_moment(tmp_path, leaves):
    """Between taking a lock and signing it a holder has no name; then it has one, or the folder is free."""
    (tmp_path / "run").mkdir()
    descriptor = os.open(tmp_path / "run" / FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def sign():
        time.sleep(0.5)
        if leaves:
            os.close(descriptor)
        else:
            os.write(descriptor, json.dumps({"host": "here", "process": 7, "since": "now"}).encode())

    thread = threading.Thread(target=sign)
    thread.start()
    if leaves:
        with lock(tmp_path) as held:
            assert held.descriptor is not None
    else:
        with pytest.raises(InputError, match="is in use by process 7 on here since now"):
            lock(tmp_path).__enter__()
        os.close(descriptor)
    thread.join()


def test_readers_share_and_keep_a_writer_out(tmp_path, hold):
    (tmp_path / "run").mkdir()
    first, second = hold("shared"), hold("shared")
    with lock(tmp_path, shared=True), pytest.raises(InputError, match="in use by process"):
        lock(tmp_path).__enter__()
    for process in (first, second):
        process.communicate(b"\n")
    assert list((tmp_path / "run").iterdir()) == []  # the last one took the file away
    with lock(tmp_path), pytest.raises(InputError, match="in use by process"):
        lock(tmp_path, shared=True).__enter__()


def test_a_reader_makes_no_folder(tmp_path):
    with lock(tmp_path, shared=True) as held:
        assert held.descriptor is None
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_of_that_name_is_refused_and_stays(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).write_text("my own notes")
    with pytest.raises(InputError, match="did not write it"):
        lock(tmp_path).__enter__()
    assert (tmp_path / "run" / FILE).read_text() == "my own notes"


def test_a_link_of_that_name_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "dear").write_text("")
    (tmp_path / "run" / FILE).symlink_to(tmp_path / "dear")
    with pytest.raises(InputError, match="cannot write in"):
        lock(tmp_path).__enter__()
    assert (tmp_path / "dear").read_text() == ""


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="train.output_dir: .*/run is a file; expected a folder"):
        lock(tmp_path).__enter__()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path):
        pass
    assert "its file system has no locks; nothing keeps a second job out of it" in capsys.readouterr().err


def test_never_two_in_the_folder(tmp_path):
    """The name of the lock's file comes and goes; two holders would find one file `inside` (FileExistsError)."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=contend, args=(tmp_path / "run", seed, results)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sum(results.get(timeout=10) for _ in workers) > 0
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
