"""Nodes as a scheduler names them: Slurm by a command, Volcano and ModelArts by variables; the job for Volcano."""

import re
from pathlib import Path

import pytest
import yaml

from pangu_sigma.config.load import load_config

SCRIPT = "train_scheduled.sh"
SECRET = "0123456789abcdef" * 4
NODES = ["192.0.2.2", "192.0.2.3", "192.0.2.4"]  # for documentation (RFC 5737): nobody has them
JOB = Path(__file__).resolve().parents[3] / "scripts" / "train_volcano.yaml"
SLURM = {"SLURM_JOB_NODELIST": "far[2-4]", "SLURM_NODEID": "1"}
VOLCANO = {"VC_WORKER_HOSTS": ",".join(NODES), "VC_TASK_INDEX": "1"}


@pytest.fixture
def run(run_script, environment, tmp_path):
    """With a stand-in for Slurm's command, which knows one list of nodes."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    names = "\\n".join(NODES)
    command.write_text(f'#!/bin/sh\n[ "$*" = "show hostnames far[2-4]" ] && printf "{names}\\n"\n')
    command.chmod(0o755)
    kept = {name: "" for name in environment if name.startswith(("SLURM_", "VC_"))}
    path = f"{command.parent}:{environment['PATH']}"
    return lambda *arguments, **settings: run_script(
        SCRIPT, *arguments, **{**kept, "PATH": path, "LOCMOE_MESH_SECRET": SECRET, **settings}
    )


@pytest.mark.parametrize("scheduler", [SLURM, {**SLURM, "SLURM_STEP_NODELIST": "far[2-4]"}, VOLCANO])
def test_each_node_is_the_one_that_the_scheduler_says(run, config_file, tmp_path, scheduler):
    done = run("--ranks-per-node", "2", "--dry-run", config_file, "--set", "train.global_batch_size=12", **scheduler)
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1]
    assert command.startswith("msrun --worker_num=6 --local_worker_num=2 --master_addr=192.0.2.2 --master_port=29500 ")
    assert "--node_rank=1 " in command and "--set train.global_batch_size=12" in command
    assert "LOCMOE_NODE_ADDRESS=192.0.2.3 " in done.stdout and f"{tmp_path}/run/logs/launch_1/node_1 " in command


def test_a_job_of_one_node_needs_no_secret(run, config_file):
    alone = {"VC_WORKER_HOSTS": "no-such-host.invalid", "VC_TASK_INDEX": "0", "LOCMOE_MESH_SECRET": ""}
    done = run("--ranks-per-node", "2", "--dry-run", config_file, **alone)
    assert done.returncode == 0 and "--worker_num=2 --local_worker_num=2 " in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({}, "no scheduler: neither SLURM_NODEID nor VC_WORKER_HOSTS is set"),
        ({"SLURM_NODEID": "0"}, "neither SLURM_STEP_NODELIST nor SLURM_JOB_NODELIST"),
        ({**SLURM, "SLURM_NODEID": "3"}, "node '3' of 3"),
        ({**SLURM, "SLURM_JOB_NODELIST": "else"}, "node '1' of 0"),
        ({"VC_WORKER_HOSTS": "192.0.2.2,192.0.2.3"}, "node '' of 2"),
        ({**VOLCANO, "VC_TASK_INDEX": "one"}, "node 'one' of 3"),
        ({**VOLCANO, "VC_WORKER_HOSTS": "192.0.2.2,no-such-host.invalid"}, "no-such-host.invalid does not resolve"),
        ({**VOLCANO, "LOCMOE_MESH_SECRET": ""}, "LOCMOE_MESH_SECRET: not set"),
    ],
)
def test_what_the_scheduler_did_not_say_is_one_line(run, config_file, settings, fragment):
    done = run("--resolve-timeout", "0", "--ranks-per-node", "2", config_file, **settings)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert fragment in line


def test_help(run):
    done = run("--help")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 128
    assert all(word in done.stdout for word in ("SLURM_NODEID", "VC_TASK_INDEX", "--resolve-timeout", "LOCMOE_PORT"))


def test_the_job_for_volcano(run):
    """As many devices as its configuration has ranks; names of the task and variables that the script reads; its
    command runs, up to what msrun would be told.
    """
    job = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    (task,) = job["spec"]["tasks"]
    pod = task["template"]["spec"]
    (container,) = pod["containers"]
    shell, script, *arguments = container["command"]
    assert (shell, script) == ("bash", f"scripts/{SCRIPT}") and task["name"] == "worker"
    assert set(job["spec"]["plugins"]) == {"env", "svc"} and job["spec"]["minAvailable"] == task["replicas"]
    (config,) = (word for word in arguments if word.endswith(".yaml"))
    parallel = load_config(config).parallel
    devices = container["resources"]["limits"]["huawei.com/Ascend910"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert (task["replicas"], devices) == (parallel.nodes, parallel.ranks_per_node)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {variable["name"] for variable in container["env"]} == {"LOCMOE_MESH_SECRET"}
    stop = int(arguments[arguments.index("--stop-timeout") + 1])
    assert stop < pod["terminationGracePeriodSeconds"]

    place = arguments.index("--env-file")  # CANN's, which is not here
    here = arguments[:place] + arguments[place + 2 :] + ["--dry-run"]
    here[here.index(config)] = str(JOB.parents[1] / config)
    hosts = ",".join(f"192.0.2.{number}" for number in range(1, task["replicas"] + 1))
    done = run(*here, VC_WORKER_HOSTS=hosts, VC_TASK_INDEX="15")
    assert done.returncode == 0, done.stderr
    assert re.search(r"msrun --worker_num=128 --local_worker_num=8 .*--node_rank=15 ", done.stdout)
