"""The launcher: its options, and real msrun jobs in which a stand-in takes the place of training."""

import json
import os
import shlex
import signal
import subprocess

import pytest

DEADLINE_S = 120.0


@pytest.fixture
def launch(run_script):
    return lambda *arguments, **settings: run_script("train_msrun.sh", *arguments, **settings)


@pytest.fixture(params=["train_msrun.sh", "launch"])
def launch_dry(request, run_script):
    """The script and the command that it stands for, where nothing is started."""
    return lambda *arguments, **settings: run_script(request.param, *arguments, **settings)


def test_help(launch_dry):
    done = launch_dry("--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for option in (
        "--ranks-per-node M",
        "--set KEY.PATH=VALUE",
        "--port P",
        "--log-dir D",
        "--bench WHAT",
        "--env-file F",
        "--dry-run",
        "--nodes N",
        "--node-rank R",
        "--master-addr A",
        "--node-addr B",
        "--nodes-file F",
        "--ssh ",
        "--ssh-command C",
        "--bind-core W",
        "--rank-table F",
        "--supervise",
    ):
        assert f"  {option}" in done.stdout


def test_dry_run_shows_the_command_and_starts_nothing(launch_dry, config_file, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = launch_dry("--ranks-per-node", "2", "--dry-run", "--port=2345", config_file, "--set", "train.seed=7")
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1]
    assert command.startswith("msrun --worker_num=2 --local_worker_num=2 ")
    assert command.rstrip().endswith(f"-m pangu_sigma train {config_file} --set train.seed=7")
    assert "--master_port=2345 " in command
    assert "LOCMOE_MESH_PORT=2345 " in done.stdout
    assert "LOCMOE_MESH_SECRET=<random>" in done.stdout
    assert f"--log_dir={tmp_path}/run/logs/launch_1 " in command
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("cores", "passed"),
    [
        ("auto", True),
        ('{"device0": ["0-23"], "device1": ["24-47"]}', {"device0": ["0-23"], "device1": ["24-47"]}),
        ('{"scheduler":["9"],"device0":["0,2","4-7"],"device1":["8"]}', None),
    ],
)
def test_ranks_are_bound_to_cores_by_msrun(launch, config_file, cores, passed):
    """What the command line says is what msrun's own parser understands."""
    from mindspore.parallel.cluster.run import _parse_and_validate_bind_core

    done = launch("--ranks-per-node", "2", "--bind-core", cores, "--dry-run", config_file)
    assert done.returncode == 0, done.stderr
    (given,) = [word[12:] for word in shlex.split(done.stdout.splitlines()[-1]) if word.startswith("--bind_core=")]
    assert _parse_and_validate_bind_core(given) == (passed or json.loads(cores))


def test_nothing_is_bound_unless_asked_for(launch, config_file):
    assert "bind" not in launch("--ranks-per-node", "2", "--dry-run", config_file).stdout


@pytest.mark.skipif(os.path.exists("/dev/davinci0"), reason="for a machine without NPU")
def test_ranks_on_cpu_are_not_bound(launch, config_file):
    done = launch("--ranks-per-node", "2", "--bind-core", "auto", config_file)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--bind-core: found no /dev/davinci0, expected an Ascend device" in line


def test_generation_takes_the_place_of_training(launch_dry, config_file):
    done = launch_dry("--generate", config_file, "--dry-run", "--", "--prompt", "a b", "--domain", "en")
    assert done.stdout.rstrip().endswith(f"-m pangu_sigma generate {config_file} --prompt 'a b' --domain en")


def test_a_bench_takes_the_place_of_training(launch_dry, config_file):
    done = launch_dry(
        "--bench", "all-to-all", config_file, "--set", "train.seed=7", "--dry-run", "--", "--tokens", "64,8"
    )
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1]
    assert command.rstrip().endswith(f"-m pangu_sigma bench all-to-all {config_file} --set train.seed=7 --tokens 64,8")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--bench", "step", "config.yaml"], "--bench: found 'step', expected all-to-all"),
        (["config.yaml", "--", "--tokens", "64"], "found '--tokens' after --, which --bench and --generate take"),
        (
            ["config.yaml", "--bench", "all-to-all", "--generate"],
            "--generate: given with --bench; expected one of them",
        ),
        (["--wokers", "2", "x.yaml"], "unrecognized arguments: --wokers"),
        (["--workers", "2", "x.yaml"], "--workers is called --ranks-per-node now; expected that"),
        (["--workers=2", "x.yaml"], "--workers is called --ranks-per-node now; expected that"),
        ([], "the following arguments are required: CONFIG"),
        (["--ranks-per-node", "none", "x.yaml"], "--ranks-per-node: found 'none'"),
        (["--ranks-per-node", "0", "x.yaml"], "--ranks-per-node: found '0'"),
        (["x.yaml", "--port", "80"], "--port: found '80'"),
        (["x.yaml", "--port=70000"], "--port: found '70000'"),
        (["x.yaml", "--set"], "argument --set: expected one argument"),
        (["x.yaml", "--bind-core", "yes"], "--bind-core: found 'yes', expected auto, or a JSON object"),
        (["x.yaml", "--bind-core={}"], "--bind-core: found '{}', expected auto, or a JSON object"),
        (["x.yaml", "--bind-core", '{"device0": ["0-2,5"]}'], "expected auto, or a JSON object of cores by device"),
        (
            ["x.yaml", "--bind-core", '{"device0": ["0-2"]}'],
            "expected cores for as many devices as --ranks-per-node has ranks",
        ),
        (["x.yaml", "y.yaml"], "unrecognized arguments: y.yaml"),
        (["x.yaml", "--server", "a"], "--server: given without --rank-table"),
        (["x.yaml", "--launcher", "mpirun"], "--launcher: found 'mpirun', expected msrun or rank-table"),
        (["x.yaml", "--launcher", "msrun", "--rank-table", "t.json"], "--rank-table: given with --launcher msrun"),
        (["x.yaml", "--stop-timeout", "0"], "--stop-timeout: found '0', expected seconds from 1 to 99999"),
        (["x.yaml", "--max-restarts", "3"], "--max-restarts: given without --supervise"),
        (["x.yaml", "--env-file", "absent.sh"], "--env-file: cannot read absent.sh"),
        (["x.yaml"], "x.yaml: cannot be read"),
        (
            ["--ranks-per-node", "3", "config.yaml"],
            "data-parallel ranks (3) does not divide train.global_batch_size (8)",
        ),
        (["config.yaml", "--set", "train.step=3"], "train.step: unknown key"),
        (["config.yaml", "--log-dir", "config.yaml/logs"], "cannot make the log folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(run_script, tmp_path, arguments, fragment):
    before = sorted(tmp_path.iterdir())
    done = run_script("launch", *arguments)
    assert done.returncode == 2
    assert fragment in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_job_that_succeeds_shows_rank_0(launch, config_file, tmp_path):
    for number in (1, 2):
        done = launch("--ranks-per-node", "2", config_file, "--set", "train.seed=7")
        logs = tmp_path / "run" / "logs" / f"launch_{number}"
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"logs: {logs}\nrank 0 of 2 seed 7\n"
        assert (logs / "worker_1.log").read_text() == "rank 1 of 2 seed 7\n"


@pytest.mark.parametrize(
    ("stand_in", "status", "shown", "logged"),
    [
        ("input", 2, "data: found nothing, expected rows", ["data: found nothing"] * 2),
        ("lost", 1, "rank 0: all_to_all: lost rank 7", ["rank 0: all_to_all: lost", "rank 1: all_to_all: lost"]),
        (
            "defect",
            1,
            "rank 1: ZeroDivisionError: oh",
            ["rank 0: ended without a report", "rank 1: ZeroDivisionError: oh"],
        ),
        (
            "killed",
            1,
            "rank 1: killed by signal 9",
            ["rank 0: ended without a report", "first failure: rank 1: killed"],
        ),
    ],
)
def test_a_job_that_fails_shows_the_first_failure_once(
    launch, processes_of, config_file, tmp_path, stand_in, status, shown, logged
):
    logs = tmp_path / "logs"
    done = launch("--ranks-per-node", "2", "--log-dir", "logs", config_file, stand_in=stand_in)
    assert done.returncode == status
    assert done.stdout == f"logs: {logs}\nrank 0 of 2 seed 1\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pangu-sigma: error: {shown}")
    for rank, fragment in enumerate(logged):
        last = (logs / f"worker_{rank}.log").read_text().splitlines()[-1]
        assert last.startswith("pangu-sigma: error: ") and fragment in last
    assert processes_of(logs) == []


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_outlives_the_launcher(
    environment, scripts, processes_of, wait_until, config_file, tmp_path, ending, status
):
    logs = tmp_path / "logs"
    launcher = subprocess.Popen(
        ["bash", str(scripts / "train_msrun.sh"), "--ranks-per-node", "2", "--log-dir", str(logs), config_file],
        stdout=subprocess.DEVNULL,
        env={**environment, "STAND_IN": "sleep"},
    )
    try:
        wait_until(
            lambda: all(
                (logs / f"worker_{rank}.log").is_file() and "seed" in (logs / f"worker_{rank}.log").read_text()
                for rank in range(2)
            )
        )
        assert len(processes_of(logs)) >= 3  # msrun and two ranks
        launcher.send_signal(ending)
        assert launcher.wait(DEADLINE_S) == status
        wait_until(lambda: not processes_of(logs))
    finally:
        launcher.kill()
        launcher.wait()
        for process in processes_of(logs):
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("stand_in, seconds, status", [("patient", "60", 0), ("deaf", "3", 143)])
def test_ranks_are_told_to_stop_and_given_time(
    environment, scripts, processes_of, wait_until, config_file, tmp_path, stand_in, seconds, status
):
    logs = tmp_path / "logs"
    command = [
        "bash",
        str(scripts / "train_msrun.sh"),
        "--ranks-per-node",
        "2",
        "--log-dir",
        str(logs),
        "--stop-timeout",
        seconds,
        config_file,
    ]
    launcher = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**environment, "STAND_IN": stand_in}
    )
    try:
        wait_until(
            lambda: all(
                (logs / f"worker_{rank}.log").is_file() and "ready" in (logs / f"worker_{rank}.log").read_text()
                for rank in range(2)
            )
        )
        launcher.send_signal(signal.SIGTERM)
        _, errors = launcher.communicate(timeout=DEADLINE_S)
        assert (launcher.returncode, errors) == (status, "")
        wait_until(lambda: not processes_of(logs))
    finally:
        launcher.kill()
        launcher.wait()
        for process in processes_of(logs):
            os.kill(process, signal.SIGKILL)
