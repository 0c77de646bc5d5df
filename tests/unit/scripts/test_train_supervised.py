"""The supervisor: what it starts again, from where, how often, and when it does not."""

import os
import signal
import subprocess
import time

import pytest


@pytest.fixture
def supervise(run_script, config_file):
    """Runs the supervisor over launches that end as `attempts` says, word by word."""

    def run(attempts, *options):
        arguments = [
            "--back-off",
            "0",
            *options,
            "--ranks-per-node",
            "2",
            "--set",
            "parallel.expert=2",
            "--set=checkpoint.interval=5",
            config_file,
        ]
        return run_script("train_supervised.sh", *arguments, stand_in="unreliable", ATTEMPTS=attempts)

    return run


def test_a_job_that_fails_goes_on_from_its_newest_checkpoint(supervise, tmp_path):
    done = supervise("lost step_5 step_10 success")
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if line.startswith("pangu-sigma launch: ")]
    assert said == [
        "pangu-sigma launch: the job ended with status 1; again from the start in 0 s "
        "(restart 1 of at most 5 without a new checkpoint)",
        "pangu-sigma launch: the job ended with status 1; again from step 5 in 0 s "
        "(restart 1 of at most 5 without a new checkpoint)",
        "pangu-sigma launch: the job ended with status 1; again from step 10 in 0 s "
        "(restart 1 of at most 5 without a new checkpoint)",
    ]
    assert done.stderr.count("rank 0: all_to_all: lost rank 7") == 3  # the launcher says what failed, each time
    rows = [line.split("\t") for line in (tmp_path / "run" / "restarts.log").read_text().splitlines()]
    assert [(row[1], row[3]) for row in rows] == [("1", "-1"), ("1", "5"), ("1", "10")]


def test_it_gives_up_when_restarts_bring_no_new_checkpoint(supervise):
    """And waits twice as long before each."""
    started = time.monotonic()
    done = supervise("step_5 lost lost success", "--max-restarts", "2", "--back-off=1")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        "pangu-sigma launch: giving up: status 1, and no new checkpoint in 2 restarts"
    )
    assert "in 1 s" in done.stderr and "in 2 s" in done.stderr and time.monotonic() - started >= 3


def test_a_run_that_diverged_is_not_tried_again(supervise):
    done = supervise("step_5 diverged success")
    assert done.returncode == 1 and done.stderr.count("(restart ") == 1
    assert done.stderr.splitlines()[-1] == "pangu-sigma launch: the run diverged, and would again: not started again"


def test_that_it_diverged_before_keeps_no_run_from_another_start(supervise, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"router": "x", "status": "diverged"}')
    done = supervise("lost success")
    assert done.returncode == 0 and done.stderr.count("(restart ") == 1


def test_bad_input_is_not_tried_again(supervise):
    done = supervise("input success")
    assert done.returncode == 2 and "data: found nothing, expected rows" in done.stderr and "restart" not in done.stderr


@pytest.mark.parametrize("sent, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_job_for_good(scripts, environment, config_file, tmp_path, processes_of, sent, status):
    command = [
        "bash",
        str(scripts / "train_supervised.sh"),
        "--ranks-per-node",
        "1",
        "--set",
        "checkpoint.interval=5",
        config_file,
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "STAND_IN": "unreliable", "ATTEMPTS": "waits success"},
    ) as process:
        log, deadline = tmp_path / "run" / "logs" / "launch_1" / "worker_0.log", time.monotonic() + 60
        while not (log.exists() and "rank 0" in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, sent)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status and "again" not in errors
    assert not processes_of(log.parent) and len(os.listdir(log.parents[1])) == 1


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--set", "checkpoint.interval=0"], "checkpoint.interval is 0, which leaves nothing to resume from"),
        (
            ["--set", "checkpoint.resume=x"],
            "--set checkpoint.resume=x: given where restarts need checkpoint.resume=auto",
        ),
        (["--max-restarts", "-1"], "--max-restarts: found '-1', expected a number"),
        (["--back-off", "x"], "--back-off: found 'x', expected seconds"),
        (["--launcher", "sh"], "--launcher: found 'sh', expected msrun or rank-table"),
        (["--dry-run"], "--dry-run: is not training"),
        (["--max-restarts"], "argument --max-restarts: expected one argument"),
    ],
)
def test_bad_arguments(run_script, config_file, arguments, expected):
    done = run_script("train_supervised.sh", config_file, *arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and f"pangu-sigma: error: {expected}" in lines[0]
