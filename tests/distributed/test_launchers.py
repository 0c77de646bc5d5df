"""Jobs that the launchers start for real on CPU: two nodes of a simulated cluster, what goes wrong between them, and a
rank table's run.

In the simulated jobs a stand-in takes the place of training: it joins the other ranks as training does.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers.ports import free_port
from helpers.ranks import LIGHT_MSRUN

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MSRUN, TABLE = "launch", "train_rank_table.sh"  # the command itself, and a script that becomes it
LIMIT = 240.0  # a launcher's processes, or the compilation of two ranks, on slow cores
ADDRESSES = ("198.18.0.1", "198.18.0.2")  # of simulate_cluster.sh
NOBODY = "198.18.0.9"
# Said by whichever rank of node 0 speaks first: rank 0 tells the other why they may not continue.
MISSED = f": join of the mesh at {ADDRESSES[0]}:29500: ranks 2, 3 did not join within 12 s"
SOON = "--set runtime.join_timeout=12"  # where ranks wait in vain


def _can_simulate():
    try:
        return (
            subprocess.run(
                ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "-V"], capture_output=True
            ).returncode
            == 0
        )
    except OSError:
        return False


simulated = pytest.mark.skipif(not _can_simulate(), reason="needs root, unshare and iproute2")

# Python imports `sitecustomize` at start-up; this one gives the command line another `train` to call.
STAND_IN = """
import os, sys, time, types

def train(config):
    from pangu_sigma.runtime.launch import read_launch
    from pangu_sigma.runtime.join import join_ranks
    launch = read_launch()
    mesh = join_ranks(config, launch.rank, launch.world_size)
    print("rank", launch.rank, "of", launch.world_size, "at", os.environ["LOCMOE_NODE_ADDRESS"], "ranks a node",
          config.parallel.ranks_per_node, flush=True)
    if os.environ["STAND_IN"] == "wait":
        time.sleep(600)
    mesh.barrier(range(launch.world_size), "end")
    mesh.close()
    return 0

if "LOCMOE_LOG_DIR" in os.environ and os.environ.get("MS_ROLE") != "MS_SCHED":
    module = types.ModuleType("pangu_sigma.train.run")
    module.train = train
    sys.modules[module.__name__] = module
"""


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "sitecustomize.py").write_text((LIGHT_MSRUN / "sitecustomize.py").read_text() + STAND_IN)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "LOCMOE_", "RANK_"))}
    return {
        **kept,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "STAND_IN": "meet",
    }


def write_table(folder, hosts, devices):
    servers = [
        {
            "server_id": f"node_{s}",
            "host_ip": host,
            "device": [
                {"device_id": str(d), "device_ip": f"192.168.{100 + d}.{1 + s}", "rank_id": str(s * devices + d)}
                for d in range(devices)
            ],
        }
        for s, host in enumerate(hosts)
    ]
    (folder / "table.json").write_text(
        json.dumps({"version": "1.0", "status": "completed", "server_count": str(len(servers)), "server_list": servers})
    )


def entry(script):
    """Shell words that start it."""
    return "python -m pangu_sigma launch" if script == MSRUN else f"bash {shlex.quote(str(SCRIPTS / script))}"


@pytest.fixture
def cluster_command(tmp_path):
    """The command of a job on two nodes of two ranks; `on_node_1` is shell that runs first on the second."""
    (tmp_path / "config.yaml").write_text(f"train: {{output_dir: {tmp_path}/run}}\nruntime: {{join_timeout: 60}}\n")
    (tmp_path / "hosts").write_text("\n".join(ADDRESSES))
    write_table(tmp_path, ADDRESSES, 2)

    def _command(script, on_node_1=":", arguments=""):
        where = "--nodes-file hosts" if script == MSRUN else "--rank-table table.json --set runtime.device=cpu"
        shell = (
            f'master={ADDRESSES[0]}; if [ "$LOCMOE_NODE_RANK" = 1 ]; then {on_node_1}; fi; '
            f"exec {entry(script)} {where} {arguments} config.yaml"
        )
        return [
            "bash",
            str(SCRIPTS / "simulate_cluster.sh"),
            "--nodes",
            "2",
            "--ranks-per-node",
            "2",
            "--keep-logs",
            "printed",
            "--",
            "bash",
            "-c",
            shell,
        ]

    return _command


def run(command, environment, folder):
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=LIMIT)


def printed(folder, node):
    return (folder / "printed" / f"node_{node}.log").read_text().splitlines()


@simulated
@pytest.mark.parametrize("script", [MSRUN, TABLE])
def test_every_node_finds_its_place(cluster_command, environment, tmp_path, script):
    """The same command on every node: a file, or the rank table, tells each which it is."""
    done = run(cluster_command(script), environment, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for node, address in enumerate(ADDRESSES):
        logs = tmp_path / "run" / "logs" / "launch_1" / f"node_{node}"
        for rank in (2 * node, 2 * node + 1):
            assert (logs / f"worker_{rank}.log").read_text() == f"rank {rank} of 4 at {address} ranks a node 2\n"


@simulated
@pytest.mark.parametrize("script", [MSRUN, TABLE])
def test_a_wrong_address_is_named_on_both_nodes(cluster_command, environment, tmp_path, script):
    """The second node takes another machine for the first: its ranks reach nobody, and rank 0 misses them."""
    wrong = (
        f"--nodes 2 --ranks-per-node 2 --node-rank 1 --master-addr {NOBODY} --node-addr {ADDRESSES[1]}"
        if script == MSRUN
        else (f"--rank-table table.json --set runtime.device=cpu --master-addr {NOBODY}")
    )
    done = run(
        cluster_command(script, f"exec {entry(script)} {wrong} {SOON} config.yaml", SOON),
        environment,
        tmp_path,
    )
    assert done.returncode == 1
    (first,) = [line for line in printed(tmp_path, 0) if "error" in line]
    assert first.endswith(MISSED)
    (second,) = [line for line in printed(tmp_path, 1) if "error" in line]
    assert f"join of the mesh at {NOBODY}:29500: cannot reach rank 0 within 12 s" in second


@simulated
@pytest.mark.parametrize("script", [MSRUN, TABLE])
def test_a_node_that_never_comes_is_named(cluster_command, environment, tmp_path, script):
    done = run(cluster_command(script, "exit 0", SOON), environment, tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in printed(tmp_path, 0) if "error" in line]
    assert line.startswith("pangu-sigma: error: rank ") and line.endswith(MISSED)


@simulated
@pytest.mark.parametrize("script", [MSRUN, TABLE])
def test_an_address_of_another_machine_is_refused(cluster_command, environment, tmp_path, script):
    """No line of the file, and no server of the table, is a machine that it starts on."""
    (tmp_path / "hosts").write_text(f"{NOBODY}\n")
    write_table(tmp_path, (NOBODY, "198.18.0.8"), 2)
    done = run(cluster_command(script), environment, tmp_path)
    assert done.returncode == 2
    expected = "none of the nodes in hosts is this machine" if script == MSRUN else "no server of"
    assert expected in printed(tmp_path, 0)[-1]


@simulated
def test_ctrl_c_leaves_nothing_on_any_node(cluster_command, environment, tmp_path):
    ranks = [tmp_path / "run" / "logs" / "launch_1" / f"node_{rank // 2}" / f"worker_{rank}.log" for rank in range(4)]
    job = subprocess.Popen(
        cluster_command(TABLE),
        env={**environment, "STAND_IN": "wait"},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + LIMIT
        while not all(log.is_file() and "ranks a node" in log.read_text() for log in ranks):
            assert time.monotonic() < end and job.poll() is None, "the ranks did not meet"
            time.sleep(0.2)
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does it
        assert job.wait(LIMIT) == 130
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    end = time.monotonic() + 10  # what has been killed may take a moment to be gone
    while left := _processes_with(str(tmp_path)):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def _processes_with(text):
    """Command lines of the running processes that have `text` in their environment, as all of a job have their log
    folder.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ")[:100])
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found


def test_a_taken_port_is_named(environment, tmp_path):
    (tmp_path / "config.yaml").write_text(f"train: {{output_dir: {tmp_path}/run}}\n")
    write_table(tmp_path, ("127.0.0.1",), 2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(
            [
                "bash",
                str(SCRIPTS / TABLE),
                "--rank-table",
                "table.json",
                "--port",
                str(port),
                "config.yaml",
                "--set",
                "runtime.device=cpu",
            ],
            environment,
            tmp_path,
        )
    assert done.returncode == 2
    assert done.stderr == f"pangu-sigma: error: mesh: port in use: 127.0.0.1:{port}; expected a free port for rank 0\n"


def test_a_rank_table_trains(tiny_data, tmp_path):
    """Two servers of one device, both played by this machine: traffic between the ranks is traffic between nodes."""
    write_table(tmp_path, ("127.0.0.1", "127.0.0.2"), 1)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "hidden_size": 16,
                    "num_heads": 2,
                    "dense_layers": 0,
                    "sparse_layers": 1,
                    "sequence_length": 32,
                },
                "moe": {"num_experts": 4},
                "parallel": {"expert": 2},
                "data": {"path": str(tiny_data)},
                "optimizer": {"schedule": "constant"},
                "runtime": {"join_timeout": 60, "device": "cpu"},
                "train": {
                    "steps": 2,
                    "global_batch_size": 4,
                    "eval_rows": 0,
                    "output_dir": str(tmp_path / "run"),
                    "cosines": False,
                },
            }
        )
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "LOCMOE_", "RANK_"))}
    environment = {**kept, "VIRTUAL_ENV": sys.prefix, "LOCMOE_MESH_SECRET": "0123456789abcdef" * 4}
    command = ["bash", str(SCRIPTS / TABLE), "--rank-table", "table.json", "--port", str(free_port()), "config.yaml"]
    jobs = [
        subprocess.Popen(
            [*command, "--server", f"node_{node}"],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    try:
        ended = [job.communicate(timeout=LIMIT) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0, 0], ended
    assert "2 ranks, expert parallel 2" in ended[0][0]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "comm/inter_node(B)" in record]
    assert len(steps) == 2 and all(record["comm/inter_node(B)"] > 0 for record in steps)
    assert not [name for record in steps for name in record if "intra_node" in name]  # a node has one rank
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["parallel"]["ranks_per_node"] == 1
