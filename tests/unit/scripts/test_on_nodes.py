"""Several nodes: what a nodes file says, and jobs started over ssh, whose place a local shell takes."""

import os
import re
import signal
import subprocess
import sys

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.runtime import nodes

DEADLINE_S = 120.0
SECRET = "0123456789abcdef" * 4
ELSEWHERE = ("198.18.0.1", "198.18.0.2")  # RFC 2544: no address of this machine
MSRUN, TABLE = "train_msrun.sh", "train_rank_table.sh"

# As sshd does it: a shell runs the last word, in another folder and environment. One host cannot be reached; one has a
# disk of its own.
SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; if [[ $1 != -* && $1 == *=* ]]; then shift; fi; done
if [ "$1" = "${UNREACHABLE:-}" ]; then echo "ssh: connect to host $1 port 22: Connection refused" >&2; exit 255; fi
if [ "$1" = "${APART:-}" ]; then set -- "$1" "${2//"$LOGS"/$DISK}"; fi
echo "$1" >>"$CALLS"
cd / && exec env -u LOCMOE_MESH_SECRET -u VIRTUAL_ENV bash -c "$2"
"""


@pytest.fixture
def ssh(tmp_path):
    path = tmp_path / "ssh"
    path.write_text(SSH)
    path.chmod(0o755)
    return f"{path} -o BatchMode=yes"


@pytest.fixture
def nodes_file(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(f"# the cluster\n{ELSEWHERE[0]}\n\n{ELSEWHERE[1]}  me@second  # by its name\n")
    return str(path)


@pytest.fixture
def launch(run_script, nodes_file, write_table, tmp_path):
    """Starts either launcher on the two nodes over ssh."""
    table = write_table(dict(zip(("node_0", "node_1"), ELSEWHERE)), 1)

    def _launch(script, *arguments, **settings):
        on_cpu = ("--set", "runtime.device=cpu")
        where = (
            ("--rank-table", table, *on_cpu)
            if script == TABLE
            else ("--nodes-file", nodes_file, "--ranks-per-node", "1")
        )
        return run_script(script, *where, *arguments, CALLS=str(tmp_path / "calls"), **settings)

    return _launch


# ---- the nodes file


def test_nodes_file(nodes_file):
    assert nodes.read_nodes(nodes_file) == [
        nodes.Node(ELSEWHERE[0], ELSEWHERE[0], ELSEWHERE[0]),
        nodes.Node(ELSEWHERE[1], ELSEWHERE[1], "me@second"),
    ]
    assert not any(node.is_own for node in nodes.read_nodes(nodes_file))


def test_a_nodes_file_of_another_system(tmp_path):
    (tmp_path / "hosts").write_bytes("\ufeff10.0.0.1\r\n\r\n10.0.0.2 # the second\u2028\r\n".encode())
    assert [node.name for node in nodes.read_nodes(tmp_path / "hosts")] == ["10.0.0.1", "10.0.0.2"]


def test_names_are_resolved(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("localhost\nno-such-host.invalid\n")
    first, second = nodes.read_nodes(path)
    assert (first.address, first.is_own, second.address, second.is_own) == ("127.0.0.1", True, None, False)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "names no machine"),
        ("# nothing\n \n", "names no machine"),
        ("10.0.0.1 a b\n", "line 1: found 3 words"),
        ("10.0.0.1\n10.0.0.2\n10.0.0.1\n", "names 10.0.0.1 twice"),
        ("localhost\n127.0.0.1\n", "names 127.0.0.1 as localhost too: both are 127.0.0.1"),
        (b"\xff\n", "not UTF-8 text (byte 0)"),
    ],
)
def test_bad_nodes_files_are_named(tmp_path, text, fragment):
    path = tmp_path / "hosts"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        nodes.read_nodes(path)
    assert str(error.value).startswith(f"{path}: ") and fragment in str(error.value)


def test_servers_of_a_rank_table(write_table):
    found = nodes.nodes_of_table(write_table({"a": "127.0.0.1", "b": ELSEWHERE[0]}, 2))
    assert found == [
        nodes.Node("a", "127.0.0.1", "127.0.0.1", ((0, 0), (1, 1))),
        nodes.Node("b", ELSEWHERE[0], ELSEWHERE[0], ((2, 0), (3, 1))),
    ]
    assert [node.is_own for node in found] == [True, False]


def test_a_node_finds_its_place_in_the_file(run_script, tmp_path):
    (tmp_path / "own").write_text(f"{ELSEWHERE[0]}\nlocalhost\n")
    done = run_script(
        MSRUN, "--nodes-file", "own", "--port", "2345", "--dry-run", "config.yaml", LOCMOE_MESH_SECRET=SECRET
    )
    # The place is found; then loopback is refused, since another machine cannot reach it.
    assert done.returncode == 2 and "--node-addr: found '127.0.0.1', expected this machine's address" in done.stderr


def test_a_given_place_in_the_file(run_script, nodes_file, tmp_path):
    done = run_script(
        MSRUN,
        "--nodes-file",
        nodes_file,
        "--node-rank",
        "1",
        "--ranks-per-node",
        "2",
        "--port",
        "2345",
        "--dry-run",
        "config.yaml",
        LOCMOE_MESH_SECRET=SECRET,
    )
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1]
    assert command.startswith(
        f"msrun --worker_num=4 --local_worker_num=2 --master_addr={ELSEWHERE[0]} --master_port=2345 --node_rank=1 "
    )
    assert f"LOCMOE_NODE_ADDRESS={ELSEWHERE[1]} " in done.stdout and "--set parallel.ranks_per_node=2" in command
    assert f"--log_dir={tmp_path}/run/logs/launch_1/node_1 " in command and SECRET not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (
            ["--nodes-file", "hosts", "--port", "2345"],
            "--nodes-file: none of the nodes in hosts is this machine; expected one, or --node-rank",
        ),
        (["--nodes-file", "absent"], "--nodes-file: absent: cannot be read"),
        (["--nodes-file", "hosts", "--nodes", "2"], "--nodes: given with --nodes-file, which says it"),
        (["--nodes-file", "hosts", "--master-addr", "10.0.0.1"], "--master-addr: given with --nodes-file"),
        (["--nodes-file", "hosts", "--ssh", "--node-rank", "1"], "--node-rank: given with --nodes-file and --ssh"),
        (["--nodes-file", "hosts", "--node-rank", "2"], "--node-rank: found '2', expected a number from 0 to 1"),
        (["--nodes-file", "hosts", "--node-rank", "1"], "--port: not given; with --nodes 2"),
        (
            ["--nodes-file", "hosts", "--node-rank", "1", "--port", "2345"],
            "LOCMOE_MESH_SECRET: not set; with --nodes 2",
        ),
        (["--nodes-file", "names", "--node-rank", "1"], "node 1: the name no-such-host.invalid does not resolve"),
        (
            ["--nodes", "2", "--node-rank", "1", "--port", "2345", "--master-addr", "127.0.0.1"],
            "LOCMOE_MESH_SECRET: not set",
        ),
        (["--ssh"], "--ssh: given without --nodes-file"),
    ],
)
def test_bad_input_is_one_line(run_script, nodes_file, tmp_path, arguments, fragment):
    (tmp_path / "names").write_text("localhost\nno-such-host.invalid\n")
    before = sorted(tmp_path.iterdir())
    done = run_script(MSRUN, *arguments, "config.yaml")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert fragment in line
    assert sorted(tmp_path.iterdir()) == before


# ---- over ssh


@pytest.mark.parametrize("script", [MSRUN, TABLE])
def test_dry_run_shows_what_each_node_is_sent_and_runs(launch, config_file, tmp_path, script):
    before = sorted(tmp_path.iterdir())
    done = launch(
        script,
        "--ssh",
        "--port",
        "2345",
        "--dry-run",
        *(("--bind-core", "auto") if script == MSRUN else ()),
        config_file,
        "--set",
        "train.seed=7",
        HCCL_CONNECT_TIMEOUT="600",
        LOCMOE_MESH_SECRET=SECRET,
    )
    assert done.returncode == 0, done.stderr
    first, second = re.split(r"^# node 1: .*\n", done.stdout, flags=re.MULTILINE)
    plain_ssh = "ssh -o BatchMode=yes -o ConnectTimeout=10"
    assert first.startswith(f"# node 0: {ELSEWHERE[0] if script == MSRUN else 'node_0'}\n{plain_ssh} {ELSEWHERE[0]} ")
    assert second.startswith(f"{plain_ssh} {'me@second' if script == MSRUN else ELSEWHERE[1]} ")
    for place, text in enumerate((first, second)):
        assert "--leash" in text and "HCCL_CONNECT_TIMEOUT=600" in text and SECRET not in text
        assert f"  LOCMOE_LOG_DIR={tmp_path}/run/logs/launch_1/node_{place} \\\n" in text
        assert "train.seed=7" in text.splitlines()[-1]
        assert ("--bind_core=True " in text.splitlines()[-1]) == (script == MSRUN)
        assert (f"--node_rank={place} " if script == MSRUN else f"RANK_ID={place} DEVICE_ID=0 ") in text.splitlines()[
            -1
        ]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("script", [MSRUN, TABLE])
def test_a_job_on_two_nodes(launch, ssh, config_file, tmp_path, script):
    done = launch(
        script,
        "--ssh",
        "--ssh-command",
        ssh,
        config_file,
        "--set",
        "train.seed=7",
        stand_in="places",
        LOCMOE_MESH_SECRET=SECRET,
    )
    logs = tmp_path / "run" / "logs" / "launch_1"
    assert (done.returncode, done.stderr) == (0, "")
    device = None if script == MSRUN else 0
    found = [
        f"rank {rank} of 2 seed 7\n"
        f"device {device} ranks a node 1 at {ELSEWHERE[rank]} root {ELSEWHERE[0]} secret 0123\n"
        for rank in range(2)
    ]
    assert done.stdout == f"logs: {logs}/node_0\n{found[0]}"
    assert (logs / "node_1.log").read_text() == f"logs: {logs}/node_1\n{found[1]}"
    assert [(logs / f"node_{rank}" / f"worker_{rank}.log").read_text() for rank in range(2)] == found
    assert sorted((tmp_path / "calls").read_text().split()) == sorted(
        [ELSEWHERE[0], "me@second" if script == MSRUN else ELSEWHERE[1]]
    )


def test_a_failure_elsewhere_ends_the_job_and_is_shown(launch, ssh, processes_of, config_file, tmp_path):
    done = launch(TABLE, "--ssh", "--ssh-command", ssh, config_file, stand_in="defect")
    logs = tmp_path / "run" / "logs" / "launch_1"
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        "pangu-sigma: error: node 1 (node_1) ended with status 1: pangu-sigma: error: rank 1: ZeroDivisionError: oh"
    )
    assert processes_of(logs / "node_0") == [] == processes_of(logs / "node_1")


def test_a_node_that_cannot_be_reached_ends_the_job(launch, ssh, processes_of, config_file, tmp_path):
    done = launch(TABLE, "--ssh", "--ssh-command", ssh, config_file, stand_in="sleep", UNREACHABLE=ELSEWHERE[1])
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        "pangu-sigma: error: node 1 (node_1) ended with status 255: "
        f"ssh: connect to host {ELSEWHERE[1]} port 22: Connection refused"
    )
    assert processes_of(tmp_path / "run" / "logs" / "launch_1" / "node_0") == []


@pytest.mark.usefixtures("config_file")
@pytest.mark.parametrize(
    ("ending", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_nothing_is_left_on_any_node(
    environment, scripts, ssh, processes_of, wait_until, write_table, tmp_path, ending, status
):
    table, logs = write_table(dict(zip(("node_0", "node_1"), ELSEWHERE)), 1), tmp_path / "logs"
    launcher = subprocess.Popen(
        [
            "bash",
            str(scripts / TABLE),
            "--rank-table",
            table,
            "--log-dir",
            str(logs),
            "--ssh",
            "--ssh-command",
            ssh,
            "config.yaml",
            "--set",
            "runtime.device=cpu",
        ],
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**environment, "STAND_IN": "sleep", "CALLS": str(tmp_path / "calls")},
    )
    ranks = [logs / f"node_{place}" / f"worker_{place}.log" for place in range(2)]
    try:
        wait_until(lambda: all(log.is_file() and "seed" in log.read_text() for log in ranks))
        assert all(processes_of(log.parent) for log in ranks)
        launcher.send_signal(ending)
        assert launcher.wait(DEADLINE_S) == status
        wait_until(lambda: not any(processes_of(log.parent) for log in ranks))
    finally:
        launcher.kill()
        launcher.wait()
        for process in (process for log in ranks for process in processes_of(log.parent)):
            os.kill(process, signal.SIGKILL)


def test_logs_of_a_node_with_a_disk_of_its_own_are_fetched(launch, ssh, config_file, tmp_path):
    logs, disk = tmp_path / "logs", tmp_path / "disk"
    done = launch(
        TABLE,
        "--ssh",
        "--ssh-command",
        ssh,
        "--log-dir",
        str(logs),
        config_file,
        APART=ELSEWHERE[1],
        LOGS=str(logs),
        DISK=str(disk),
    )
    assert (done.returncode, done.stderr) == (0, "")
    for folder in (disk, logs):
        assert (folder / "node_1" / "worker_1.log").read_text() == "rank 1 of 2 seed 1\n"


@pytest.mark.usefixtures("config_file")
@pytest.mark.parametrize("stand_in", ["deaf", "sleep"])
def test_the_end_of_the_leash_stops_the_job(environment, processes_of, wait_until, write_table, tmp_path, stand_in):
    """What ssh started ends with ssh, and has the secret from there."""
    table, logs = write_table({"node_0": ELSEWHERE[0]}, 1), tmp_path / "logs"
    command = [sys.executable, "-m", "pangu_sigma", "launch", "--leash", "--rank-table", table, "--log-dir", str(logs)]
    held = subprocess.Popen(
        [*command, "--stop-timeout", "3", "config.yaml", "--set", "runtime.device=cpu"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**environment, "STAND_IN": stand_in},
    )
    try:
        held.stdin.write(f"{SECRET}\n".encode())
        held.stdin.flush()
        log = logs / "worker_0.log"
        wait_until(lambda: log.is_file() and ("ready" if stand_in == "deaf" else "seed") in log.read_text())
        held.stdin.close()
        assert held.wait(DEADLINE_S) == 143
        wait_until(lambda: not processes_of(logs))
    finally:
        held.kill()
        held.wait()


def test_a_leash_that_says_nothing_starts_nothing(config_file, tmp_path):
    before = sorted(tmp_path.iterdir())
    with subprocess.Popen(
        [sys.executable, "-m", "pangu_sigma", "launch", "--leash", config_file], stdin=subprocess.DEVNULL, cwd=tmp_path
    ) as held:
        assert held.wait(DEADLINE_S) == 143
    assert sorted(tmp_path.iterdir()) == before
