"""The launcher of rank tables: its options, and real jobs of processes in which a stand-in takes training's place."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

DEADLINE_S = 120.0
CPU = ("--set", "runtime.device=cpu")
SECRET = "0123456789abcdef" * 4
HAS_ASCEND = any(Path("/dev").glob("davinci[0-9]*"))


@pytest.fixture
def launch(run_script):
    return lambda *arguments, **settings: run_script("train_rank_table.sh", *arguments, **settings)


@pytest.fixture(params=["train_rank_table.sh", "launch"])
def launch_dry(request, run_script):
    """The script and the command that it stands for, where nothing is started."""
    return lambda *arguments, **settings: run_script(request.param, *arguments, **settings)


@pytest.fixture
def one(write_table):
    return write_table({"node_0": "10.0.0.1"}, 2)


@pytest.fixture
def two(write_table):
    """Two servers, neither of which is this machine."""
    return write_table({"node_0": "198.18.0.1", "node_1": "198.18.0.2"}, 2, "two.json")


def test_help_names_every_option(launch):
    done = launch("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for option in (
        "--rank-table F",
        "--server NAME",
        "--set KEY.PATH=VALUE",
        "--log-dir D",
        "--bench WHAT",
        "--env-file F",
        "--ssh ",
        "--ssh-command C",
        "--dry-run",
        "--port P",
        "--master-addr A",
    ):
        assert f"  {option}" in done.stdout


def test_dry_run_shows_every_rank_and_starts_nothing(launch_dry, one, config_file, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = launch_dry(
        "--rank-table", "table.json", "--dry-run", config_file, "--set", "train.seed=7", OMP_NUM_THREADS="3"
    )
    assert done.returncode == 0, done.stderr
    logs = f"{tmp_path}/run/logs/launch_1"
    lines = done.stdout.splitlines()
    assert {f"RANK_TABLE_FILE={one} \\", "RANK_SIZE=2 \\", f"LOCMOE_LOG_DIR={logs} \\", "OMP_NUM_THREADS=3 \\"} <= set(
        lines
    )
    assert lines[-2:] == [
        f"RANK_ID={rank} DEVICE_ID={rank} python -m pangu_sigma train {config_file} --set train.seed=7 "
        f"--set parallel.ranks_per_node=2 >{logs}/worker_{rank}.log"
        for rank in range(2)
    ]
    assert "LOCMOE_MESH" not in done.stdout  # which ranks on Ascend have no use for
    assert sorted(tmp_path.iterdir()) == before


def test_dry_run_of_the_second_server_on_cpu(launch_dry, two, config_file, tmp_path):
    done = launch_dry(
        f"--rank-table={two}",
        "--server=node_1",
        "--port=2345",
        "--dry-run",
        config_file,
        *CPU,
        LOCMOE_MESH_SECRET=SECRET,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {
        "RANK_SIZE=4 \\",
        "LOCMOE_MASTER_ADDRESS=198.18.0.1 \\",
        "LOCMOE_NODE_ADDRESS=198.18.0.2 \\",
        "LOCMOE_MESH_PORT=2345 \\",
        "LOCMOE_MESH_SECRET=<given> \\",
    } <= set(lines)
    assert [line.split()[:2] for line in lines[-2:]] == [["RANK_ID=2", "DEVICE_ID=0"], ["RANK_ID=3", "DEVICE_ID=1"]]
    assert lines[-1].endswith(f">{tmp_path}/run/logs/launch_1/node_1/worker_3.log")
    assert SECRET not in done.stdout


def test_generation_takes_the_place_of_training(launch_dry, one, config_file):
    done = launch_dry("--generate", config_file, "--dry-run", "--rank-table", one, "--", "--prompt", "ab")
    assert done.returncode == 0, done.stderr
    words = f"-m pangu_sigma generate {config_file} --set parallel.ranks_per_node=2 --prompt ab"
    assert words in done.stdout.splitlines()[-1]


def test_a_bench_takes_the_place_of_training(launch_dry, one, config_file):
    done = launch_dry("--bench", "all-to-all", config_file, "--dry-run", "--rank-table", one, "--", "--tokens", "64,8")
    assert done.returncode == 0, done.stderr
    words = f"-m pangu_sigma bench all-to-all {config_file} --set parallel.ranks_per_node=2 --tokens 64,8"
    assert words in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "the following arguments are required: CONFIG"),
        (["config.yaml"], "--rank-table: not given, nor RANK_TABLE_FILE set"),
        (["--rank-table", "table.json", "--wokers", "2", "config.yaml"], "unrecognized arguments: --wokers"),
        (["--rank-table"], "argument --rank-table: expected one argument"),
        (["--rank-table", "absent.json", "config.yaml"], "--rank-table: absent.json: cannot be read"),
        (["--rank-table", "config.yaml", "config.yaml"], "--rank-table: config.yaml: line 1, column 1: not valid JSON"),
        (["--rank-table", "table.json", "config.yaml", "x.yaml"], "unrecognized arguments: x.yaml"),
        (["--rank-table", "table.json", "absent.yaml"], "absent.yaml: cannot be read"),
        (
            ["--rank-table", "table.json", "config.yaml", "--server", "node_9"],
            "--server: found 'node_9', expected a server_id",
        ),
        (["--rank-table", "table.json", "config.yaml", "--server", "node_0", "--ssh"], "--server: given with --ssh"),
        (["--rank-table", "two.json", "config.yaml"], "--server: not given; expected it, since no server of"),
        (["--rank-table", "two.json", "config.yaml", "--server", "node_1", *CPU], "--port: not given; with 2 servers"),
        (
            ["--rank-table", "two.json", "config.yaml", "--server", "node_1", "--port", "2345", *CPU],
            "LOCMOE_MESH_SECRET: not set",
        ),
        (["--rank-table", "table.json", "config.yaml", "--nodes", "2"], "--nodes: given with a rank table, which says"),
        (["--rank-table", "table.json", "config.yaml", "--bind-core", "auto"], "--bind-core: given with a rank table"),
        (["--rank-table", "table.json", "config.yaml", "--port", "80"], "--port: found '80'"),
        (["--rank-table", "table.json", "config.yaml", "--bench", "step"], "--bench: found 'step'"),
        (["--rank-table", "table.json", "config.yaml", "--", "--tokens", "64"], "found '--tokens' after --"),
        (["--rank-table", "table.json", "config.yaml", "--env-file", "absent.sh"], "--env-file: cannot read absent.sh"),
        (
            ["--rank-table", "three.json", "config.yaml"],
            "data-parallel ranks (3) does not divide train.global_batch_size (8)",
        ),
        (
            ["--rank-table", "table.json", "config.yaml", "--log-dir", "config.yaml/logs", *CPU],
            "cannot make the log folder",
        ),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(launch, one, two, write_table, tmp_path, arguments, fragment):
    write_table({"node_0": "10.0.0.1"}, 3, "three.json")
    before = sorted(tmp_path.iterdir())
    done = launch(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert fragment in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(HAS_ASCEND, reason="this machine has the devices")
def test_without_ascend_it_says_what_it_needs(launch, one, config_file):
    for extra in ((), ("--set", "runtime.device=ascend")):
        done = launch("--rank-table", one, config_file, *extra)
        assert done.returncode == 2
        assert done.stderr == (
            "pangu-sigma: error: rank 0: found no /dev/davinci0; expected an Ascend device with its driver "
            "loaded, or --set runtime.device=cpu\n"
        )


def test_devices_have_their_physical_numbers(launch, one, config_file):
    done = launch("--rank-table", one, config_file, ASCEND_RT_VISIBLE_DEVICES="4,5")
    assert done.returncode == 2 and "ASCEND_RT_VISIBLE_DEVICES: found '4,5', expected it unset" in done.stderr


def test_a_job_that_succeeds_shows_rank_0(launch, one, config_file, tmp_path):
    (tmp_path / "set_env.sh").write_text('unset NOTHING; export SHOWN="env $UNSET_BEFORE file"\n')
    for number in (1, 2):
        done = launch(
            config_file, "--set", "train.seed=7", *CPU, "--env-file", "set_env.sh", RANK_TABLE_FILE="table.json"
        )
        logs = tmp_path / "run" / "logs" / f"launch_{number}"
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"logs: {logs}\nrank 0 of 2 seed 7 env file\n"
        assert (logs / "worker_1.log").read_text() == "rank 1 of 2 seed 7 env file\n"


def test_every_rank_finds_its_place(launch, write_table, config_file, tmp_path):
    """Two servers that are both this machine, the second of which is started."""
    table = write_table({"a": "127.0.0.1", "b": "127.0.0.2"}, 2)
    done = launch(
        "--rank-table",
        table,
        "--server",
        "b",
        "--port",
        "2345",
        config_file,
        *CPU,
        stand_in="places",
        LOCMOE_MESH_SECRET=SECRET,
    )
    logs = tmp_path / "run" / "logs" / "launch_1" / "node_1"
    assert (done.returncode, done.stderr) == (0, "")
    for rank in (2, 3):
        assert (logs / f"worker_{rank}.log").read_text() == (
            f"rank {rank} of 4 seed 1\ndevice {rank - 2} ranks a node 2 at 127.0.0.2 root 127.0.0.1 secret 0123\n"
        )
    done = launch("--rank-table", table, config_file, *CPU)
    assert done.returncode == 2 and "several of the nodes are this machine (0 1)" in done.stderr


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
        (
            "left",
            1,
            "rank 1: ended with status 7",
            ["rank 0: ended without a report", "first failure: rank 1: ended with status 7"],
        ),
    ],
)
def test_a_job_that_fails_shows_the_first_failure_once(
    launch, processes_of, one, config_file, tmp_path, stand_in, status, shown, logged
):
    logs = tmp_path / "logs"
    done = launch("--rank-table", one, "--log-dir", "logs", config_file, *CPU, stand_in=stand_in)
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
    environment, scripts, processes_of, wait_until, one, config_file, tmp_path, ending, status
):
    logs = tmp_path / "logs"
    command = [
        "bash",
        str(scripts / "train_rank_table.sh"),
        "--rank-table",
        one,
        "--log-dir",
        str(logs),
        config_file,
        *CPU,
    ]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**environment, "STAND_IN": "sleep"})
    try:
        wait_until(
            lambda: all(
                (logs / f"worker_{rank}.log").is_file() and "seed" in (logs / f"worker_{rank}.log").read_text()
                for rank in range(2)
            )
        )
        assert len(processes_of(logs)) == 2
        launcher.send_signal(ending)
        assert launcher.wait(DEADLINE_S) == status
        wait_until(lambda: not processes_of(logs))
    finally:
        launcher.kill()
        launcher.wait()
        for process in processes_of(logs):
            os.kill(process, signal.SIGKILL)


def test_free_ports_differ_from_taken_ones(launch, one, config_file):
    """The port that is drawn for one server can be had there."""
    done = launch("--rank-table", one, "--dry-run", config_file, *CPU)
    (port,) = [
        line.split("=")[1]
        for line in done.stdout.replace(" \\", "").splitlines()
        if line.startswith("LOCMOE_MESH_PORT=")
    ]
    with socket.create_server(("127.0.0.1", int(port))):
        pass


@pytest.mark.parametrize("stand_in, seconds, status", [("patient", "60", 0), ("deaf", "3", 143)])
def test_ranks_are_told_to_stop_and_given_time(
    environment, scripts, processes_of, wait_until, one, config_file, tmp_path, stand_in, seconds, status
):
    logs = tmp_path / "logs"
    command = [
        "bash",
        str(scripts / "train_rank_table.sh"),
        "--rank-table",
        one,
        "--log-dir",
        str(logs),
        "--stop-timeout",
        seconds,
        config_file,
        *CPU,
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
