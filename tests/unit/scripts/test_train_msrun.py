"""The launcher: its options, and real msrun jobs in which a stand-in takes the place of training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "train_msrun.sh"
DEADLINE_S = 120.0

# Python imports `sitecustomize` at start-up; this one gives the command line another `train` to call.
STAND_IN = """
import os, signal, sys, time, types
from locmoe_ops.errors import CollectiveError, InputError

def train(config):
    rank = int(os.environ["RANK_ID"])
    assert len(os.environ["LOCMOE_MESH_SECRET"]) == 64 and int(os.environ["LOCMOE_MESH_PORT"]) > 0
    assert os.environ["LOCMOE_MESH_SECRET"] not in open("/proc/self/cmdline").read()
    print("rank", rank, "of", os.environ["MS_WORKER_NUM"], "seed", config.train.seed)
    outcome = os.environ["STAND_IN"]
    if outcome == "input":
        raise InputError("data: found nothing, expected rows")
    if outcome == "lost":
        time.sleep(rank / 2)
        raise CollectiveError("rank %d: all_to_all: lost rank 7" % rank)
    if outcome == "defect" and rank == 1:
        raise ZeroDivisionError("oh")
    if outcome == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if outcome != "success":
        time.sleep(600)
    return 0

if "MS_ROLE" in os.environ:
    module = types.ModuleType("pangu_sigma.train.run")
    module.train = train
    sys.modules[module.__name__] = module
"""


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "LOCMOE_", "RANK_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "VIRTUAL_ENV": sys.prefix, "PATH": path, "PYTHONPATH": str(tmp_path), "STAND_IN": "success"}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"train: {{output_dir: {tmp_path}/run}}\n")
    return str(path)


@pytest.fixture
def launch(environment, config_file, tmp_path):
    def _launch(*arguments, stand_in="success"):
        return subprocess.run(["bash", str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True,
                              timeout=DEADLINE_S, env={**environment, "STAND_IN": stand_in})

    return _launch


def _processes_of(folder):
    """Ids of running processes that were given this log folder: all of one job, whoever their parent is."""
    wanted = f"LOCMOE_LOG_DIR={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found


def _wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happened within the deadline"
        time.sleep(0.1)


def test_help(launch):
    done = launch("--help")
    assert done.returncode == 0
    for option in ("--workers N", "--set KEY.PATH=VALUE", "--port P", "--log-dir D", "--dry-run", "--help"):
        assert option in done.stdout


def test_dry_run_shows_the_command_and_starts_nothing(launch, config_file, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = launch("--workers", "2", "--dry-run", "--port=2345", config_file, "--set", "train.seed=7")
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1]
    assert command.startswith("msrun --worker_num=2 --local_worker_num=2 ")
    assert command.rstrip().endswith(f"-m pangu_sigma train {config_file} --set train.seed=7")
    assert "--master_port=2345 " in command
    assert "LOCMOE_MESH_PORT=2345 " in done.stdout
    assert "LOCMOE_MESH_SECRET=<random>" in done.stdout
    assert f"--log_dir={tmp_path}/run/logs/launch_1 " in command
    assert sorted(tmp_path.iterdir()) == before


def test_a_bench_takes_the_place_of_training(launch, config_file):
    done = launch("--bench", "all-to-all", config_file, "--set", "train.seed=7", "--dry-run", "--", "--tokens", "64,8")
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1].replace("\\", "")
    assert command.rstrip().endswith(f"-m pangu_sigma bench all-to-all {config_file} --set train.seed=7 --tokens 64,8")


@pytest.mark.parametrize(("arguments", "fragment"), [
    (["--bench", "step", "config.yaml"], "--bench: found 'step', expected all-to-all"),
    (["config.yaml", "--", "--tokens", "64"], "found '--tokens' after --, which --bench takes"),
    (["--wokers", "2", "x.yaml"], "unknown option --wokers"),
    ([], "no configuration file given"),
    (["--workers", "none", "x.yaml"], "--workers: found 'none'"),
    (["--workers", "0", "x.yaml"], "--workers: found '0'"),
    (["x.yaml", "--port", "80"], "--port: found '80'"),
    (["x.yaml", "--port=70000"], "--port: found '70000'"),
    (["x.yaml", "--set"], "--set needs a value"),
    (["x.yaml", "y.yaml"], "a second configuration file, y.yaml"),
    (["x.yaml"], "x.yaml: cannot be read"),
    (["--workers", "3", "config.yaml"], "data-parallel ranks (3) does not divide train.global_batch_size (8)"),
    (["config.yaml", "--set", "train.step=3"], "train.step: unknown key"),
    (["config.yaml", "--log-dir", "config.yaml/logs"], "cannot make the log folder"),
])
def test_bad_input_is_one_line_before_anything_starts(launch, tmp_path, arguments, fragment):
    before = sorted(tmp_path.iterdir())
    done = launch(*arguments)
    assert done.returncode == 2
    assert fragment in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_job_that_succeeds_shows_rank_0(launch, config_file, tmp_path):
    for number in (1, 2):
        done = launch("--workers", "2", config_file, "--set", "train.seed=7")
        logs = tmp_path / "run" / "logs" / f"launch_{number}"
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"logs: {logs}\nrank 0 of 2 seed 7\n"
        assert (logs / "worker_1.log").read_text() == "rank 1 of 2 seed 7\n"


@pytest.mark.parametrize(("stand_in", "status", "shown", "logged"), [
    ("input", 2, "data: found nothing, expected rows", ["data: found nothing"] * 2),
    ("lost", 1, "rank 0: all_to_all: lost rank 7", ["rank 0: all_to_all: lost", "rank 1: all_to_all: lost"]),
    ("defect", 1, "rank 1: ZeroDivisionError: oh", ["rank 0: ended without a report", "rank 1: ZeroDivisionError: oh"]),
    ("killed", 1, "rank 1: killed by signal 9", ["rank 0: ended without a report", "first failure: rank 1: killed"]),
])
def test_a_job_that_fails_shows_the_first_failure_once(launch, config_file, tmp_path, stand_in, status, shown, logged):
    logs = tmp_path / "logs"
    done = launch("--workers", "2", "--log-dir", "logs", config_file, stand_in=stand_in)
    assert done.returncode == status
    assert done.stdout == f"logs: {logs}\nrank 0 of 2 seed 1\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pangu-sigma: error: {shown}")
    for rank, fragment in enumerate(logged):
        last = (logs / f"worker_{rank}.log").read_text().splitlines()[-1]
        assert last.startswith("pangu-sigma: error: ") and fragment in last
    assert _processes_of(logs) == []


@pytest.mark.parametrize(("ending", "status"), [
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL),
])
def test_nothing_outlives_the_launcher(environment, config_file, tmp_path, ending, status):
    logs = tmp_path / "logs"
    launcher = subprocess.Popen(["bash", str(SCRIPT), "--workers", "2", "--log-dir", str(logs), config_file],
                                stdout=subprocess.DEVNULL, env={**environment, "STAND_IN": "sleep"})
    try:
        _wait_until(lambda: all((logs / f"worker_{rank}.log").is_file()
                                and "seed" in (logs / f"worker_{rank}.log").read_text() for rank in range(2)))
        assert len(_processes_of(logs)) >= 3  # msrun and two ranks
        launcher.send_signal(ending)
        assert launcher.wait(DEADLINE_S) == status
        _wait_until(lambda: not _processes_of(logs))
    finally:
        launcher.kill()
        launcher.wait()
        for process in _processes_of(logs):
            os.kill(process, signal.SIGKILL)
