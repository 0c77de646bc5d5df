"""What the launchers' tests share: a stand-in for training, the environment it runs in, and the processes of a job."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.ranks import LIGHT_MSRUN

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
DEADLINE_S = 120.0

# Python imports `sitecustomize` at start-up; this one gives the command line another `train` to call.
STAND_IN = """
import os, signal, sys, time, types
from locmoe_ops.errors import CollectiveError, InputError

def train(config):
    from pangu_sigma.runtime.launch import read_launch
    launch = read_launch()
    rank = launch.rank
    if "MS_ROLE" in os.environ or config.runtime.device == "cpu":
        assert len(os.environ["LOCMOE_MESH_SECRET"]) == 64 and int(os.environ["LOCMOE_MESH_PORT"]) > 0
        assert os.environ["LOCMOE_MESH_SECRET"] not in open("/proc/self/cmdline").read()
    if os.environ["STAND_IN"] == "refused":  # before it has shown anything
        raise InputError("data: found nothing, expected rows")
    print("rank", rank, "of", launch.world_size, "seed", config.train.seed, *os.environ.get("SHOWN", "").split())
    outcome = os.environ["STAND_IN"]
    if outcome == "places":
        root = os.environ.get("MS_SCHED_HOST") or os.environ["LOCMOE_MASTER_ADDRESS"]
        print("device", launch.device, "ranks a node", config.parallel.ranks_per_node,
              "at", os.environ["LOCMOE_NODE_ADDRESS"], "root", root, "secret", os.environ["LOCMOE_MESH_SECRET"][:4])
        return 0
    if outcome == "unreliable":  # ends as ATTEMPTS says, one word a launch; "step_N" leaves that checkpoint and fails
        launches = os.path.join(config.train.output_dir, "logs")
        word = os.environ["ATTEMPTS"].split()[len(os.listdir(launches)) - 1]
        assert config.checkpoint.resume == "auto"
        if rank > 0 and word != "success":
            time.sleep(600)  # the first rank says what there is to say
        if word.startswith("step_") and rank == 0:
            os.makedirs(os.path.join(config.train.output_dir, "checkpoints", word))
        if word == "success":
            return 0
        if word == "input":
            raise InputError("data: found nothing, expected rows")
        if word == "diverged":
            with open(os.path.join(config.train.output_dir, "summary.json"), "w") as file:
                file.write('{"router": "x", "status": "diverged"}')
        if word == "waits":
            time.sleep(600)
        raise CollectiveError("rank %d: all_to_all: lost rank 7" % rank)
    if outcome in ("patient", "deaf"):  # told to stop, one ends well after a moment, the other goes on
        end_well = lambda *_: (time.sleep(1), sys.exit(0))
        signal.signal(signal.SIGTERM, end_well if outcome == "patient" else signal.SIG_IGN)
        print("ready")
    if outcome == "input":
        raise InputError("data: found nothing, expected rows")
    if outcome == "lost":
        time.sleep(rank / 2)
        raise CollectiveError("rank %d: all_to_all: lost rank 7" % rank)
    if outcome == "defect" and rank == 1:
        raise ZeroDivisionError("oh")
    if outcome == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if outcome == "left" and rank == 1:
        os._exit(7)
    if outcome != "success":
        time.sleep(600)
    return 0

if "LOCMOE_LOG_DIR" in os.environ:
    module = types.ModuleType("pangu_sigma.train.run")
    module.train = train
    sys.modules[module.__name__] = module
"""


def command_of(entry):
    """The words of a script, or of the program's command, such as "launch --supervise"."""
    return (
        ["bash", str(SCRIPTS / entry)]
        if entry.endswith(".sh")
        else [sys.executable, "-m", "pangu_sigma", *entry.split()]
    )


@pytest.fixture
def scripts():
    return SCRIPTS


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "sitecustomize.py").write_text((LIGHT_MSRUN / "sitecustomize.py").read_text() + STAND_IN)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MS_", "LOCMOE_", "RANK_", "HCCL_"))
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **kept,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": path,
        "PYTHONPATH": str(tmp_path),
        "STAND_IN": "success",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # tests look at what is left in the folder: no cache of the stand-in


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"train: {{output_dir: {tmp_path}/run}}\n")
    return str(path)


@pytest.fixture
def run_script(environment, config_file, tmp_path):
    """Runs a script, or a command of the program (see `command_of`), in the temporary folder, which holds
    `config.yaml`; returns what it did.
    """

    def _run(script, *arguments, stand_in="success", **variables):
        return subprocess.run(
            [*command_of(script), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env={**environment, "STAND_IN": stand_in, **variables},
        )

    return _run


@pytest.fixture
def processes_of():
    """Gives the ids of running processes that were given a log folder: all of one job, whoever their parent is."""

    def _of(folder):
        wanted = f"LOCMOE_LOG_DIR={folder}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it ended meanwhile, or is not ours
                continue
        return found

    return _of


@pytest.fixture
def wait_until():
    def _wait(condition):
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "nothing happened within the deadline"
            time.sleep(0.1)

    return _wait


@pytest.fixture
def write_table(tmp_path):
    """Writes a rank table of servers, given as server_id -> host_ip, with so many devices each; returns its path."""

    def _write(servers, devices, name="table.json"):
        entries = [
            {
                "server_id": server,
                "host_ip": host,
                "device": [
                    {"device_id": str(d), "device_ip": f"192.168.{100 + d}.{1 + s}", "rank_id": str(s * devices + d)}
                    for d in range(devices)
                ],
            }
            for s, (server, host) in enumerate(servers.items())
        ]
        path = tmp_path / name
        path.write_text(
            json.dumps(
                {"version": "1.0", "status": "completed", "server_count": str(len(entries)), "server_list": entries}
            )
        )
        return str(path)

    return _write
