"""A process's place in the job: from msrun's variables, from a rank table's, from both, from neither."""

import json
import os
import re
from pathlib import Path

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.cli import main as cli
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.runtime.launch import (
    CLUSTER_VARIABLES,
    RANK_VARIABLES,
    Launch,
    check_launch,
    check_ranks,
    is_worker,
    rank_name,
    read_launch,
)
from pangu_sigma.runtime.processes import with_this_python

VARIABLES = (*RANK_VARIABLES, *CLUSTER_VARIABLES)
REPOSITORY = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def table_file(tmp_path):
    """Two servers of eight devices, of which the second counts its devices downwards."""
    path = tmp_path / "table.json"
    servers = [
        {
            "server_id": f"10.0.0.{s + 1}",
            "device": [
                {
                    "device_id": str(d if s == 0 else 7 - d),
                    "device_ip": f"192.168.{d}.{s + 1}",
                    "rank_id": str(8 * s + d),
                }
                for d in range(8)
            ],
        }
        for s in range(2)
    ]
    path.write_text(json.dumps({"version": "1.0", "status": "completed", "server_count": "2", "server_list": servers}))
    return str(path)


@pytest.fixture
def given(monkeypatch, table_file):
    """Sets environment variables; `TABLE` stands for the rank table's path."""

    def _given(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("TABLE", table_file))

    return _given


def config(**parallel):
    return config_from_dict({"parallel": parallel})


def test_without_a_launcher_there_is_one_rank(given):
    assert (read_launch(), is_worker(), rank_name()) == (Launch(), False, "0")
    given(RANK_TABLE_FILE="TABLE")  # as containers of a cluster have it, whatever runs in them
    assert (read_launch(), is_worker()) == (Launch(), False)


def test_under_msrun(given):
    given(MS_ROLE="MS_WORKER", RANK_ID="3", MS_WORKER_NUM="4")
    launch = read_launch()
    assert (launch.rank, launch.world_size, launch.device, launch.table) == (3, 4, None, None)
    assert is_worker() and rank_name() == "3"
    assert launch.fit(config(ranks_per_node=2)) == config(ranks_per_node=2)


@pytest.mark.parametrize(("rank", "device"), [(0, 0), (7, 7), (8, 7), (15, 0)])
def test_by_a_rank_table(given, rank, device):
    given(RANK_TABLE_FILE="TABLE", RANK_ID=str(rank))
    launch = read_launch()
    assert (launch.rank, launch.world_size, launch.device, is_worker()) == (rank, 16, device, True)
    given(RANK_SIZE="16", DEVICE_ID=str(device))
    assert read_launch() == launch


def test_msrun_with_a_rank_table_has_its_nodes(given):
    given(MS_ROLE="MS_WORKER", RANK_ID="3", MS_WORKER_NUM="16", RANK_TABLE_FILE="TABLE")
    launch = read_launch()
    assert (launch.rank, launch.world_size, launch.device) == (3, 16, None)
    assert launch.fit(config()).parallel.ranks_per_node == 8


@pytest.mark.parametrize(("key", "ranks_per_node"), [(None, 8), (8, 8), (4, 4)])
def test_ranks_a_node_are_the_tables(given, key, ranks_per_node):
    given(RANK_TABLE_FILE="TABLE", RANK_ID="0")
    assert read_launch().fit(config(ranks_per_node=key, expert=4)) == config(ranks_per_node=ranks_per_node, expert=4)


def test_other_ranks_a_node_are_refused(given):
    given(RANK_TABLE_FILE="TABLE", RANK_ID="0")
    with pytest.raises(
        InputError, match="parallel.ranks_per_node is 2, but the rank table has 8 devices a server; expected 8, or 4"
    ):
        read_launch().fit(config(ranks_per_node=2))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK_TABLE_FILE": "TABLE", "RANK_ID": "16"}, "RANK_ID: found 16, expected a rank of TABLE, 0 to 15"),
        ({"RANK_TABLE_FILE": "TABLE", "RANK_ID": "one"}, "RANK_ID: found 'one', expected a number"),
        (
            {"RANK_TABLE_FILE": "TABLE", "RANK_ID": "8", "DEVICE_ID": "0"},
            "DEVICE_ID: found 0, expected 7, as TABLE has it for rank 8",
        ),
        ({"RANK_TABLE_FILE": "TABLE", "RANK_ID": "8", "RANK_SIZE": "8"}, "RANK_SIZE: found 8, expected 16"),
        ({"RANK_TABLE_FILE": "TABLE.gone", "RANK_ID": "8"}, "TABLE.gone: cannot be read"),
        (
            {"RANK_TABLE_FILE": "TABLE", "RANK_ID": "0", "MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "8"},
            "has 16 ranks, but msrun was told of 8 (MS_WORKER_NUM)",
        ),
        ({"RANK_ID": "0", "MS_ROLE": "MS_WORKER"}, "MS_WORKER_NUM: found ''"),
    ],
)
def test_contradictions_are_named(given, table_file, variables, message):
    given(**variables)
    with pytest.raises(InputError) as caught:
        read_launch()
    assert message.replace("TABLE", table_file) in str(caught.value)


def test_a_rank_of_a_table_reports_like_one_of_msrun(given, tmp_path, monkeypatch):
    """The error goes to the job's log under the rank's number; checked for the ranks and nodes of the table."""
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    (tmp_path / "config.yaml").write_text("train: {global_batch_size: 8}\n")
    given(RANK_TABLE_FILE="TABLE", RANK_ID="9", LOCMOE_LOG_DIR=str(tmp_path))
    assert cli.main(["train", str(tmp_path / "config.yaml")]) == 2
    assert (tmp_path / "workers.log").read_text().startswith("9\t")
    (line,) = (tmp_path / "errors.log").read_text().splitlines()
    assert line.startswith("9\t2\tpangu-sigma: error: ") and "data-parallel ranks (16)" in line


# ---- what another job has left over in the shell


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """`run_command("train")`: status and lines of stderr of a command on a small configuration."""
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    (tmp_path / "config.yaml").write_text("data: {path: gone}\n")

    def _run(command):
        status = cli.main([*command.split(), str(tmp_path / "config.yaml")])
        return status, capsys.readouterr().err.splitlines()

    return _run


WHOLE = {
    "MS_WORKER_NUM": "1",
    "RANK_ID": "0",
    "MS_SCHED_HOST": "127.0.0.1",
    "MS_SCHED_PORT": "29500",
    "MS_NODE_ID": "0",
}


@pytest.mark.parametrize(
    ("command", "variables", "named"),
    [
        ("config", {"MS_ROLE": "MS_WORKER"}, "MS_ROLE"),
        ("config", {"MS_ROLE": "MS_SCHED"}, "MS_ROLE"),  # which had been a success that did nothing
        ("plan", {"MS_ROLE": "MS_WORKER", **WHOLE}, "MS_ROLE"),
        ("bench step", {"MS_ROLE": "MS_SCHED", **WHOLE}, "MS_ROLE"),
        ("prepare", {"MS_ROLE": "worker"}, "MS_ROLE"),
        ("train", {"MS_ROLE": "1"}, "MS_ROLE"),
        ("train", {"MS_ROLE": "MS_WORKER"}, "MS_ROLE"),
        ("train", {"MS_ROLE": "MS_WORKER", "RANK_ID": "0"}, "MS_ROLE"),
        ("train", {"MS_ROLE": "MS_WORKER", **WHOLE, "MS_WORKER_NUM": "3"}, "MS_ROLE"),
        ("train", {"MS_ROLE": "MS_SCHED"}, "MS_ROLE"),
        ("train", {"MS_ROLE": "MS_SCHED", **WHOLE}, "MS_ROLE"),
        ("train", {"MS_ROLE": "MS_WORKER", "RANK_TABLE_FILE": "TABLE", **WHOLE}, "MS_ROLE"),
        ("train", {"RANK_TABLE_FILE": "TABLE", "RANK_ID": "0"}, "RANK_TABLE_FILE RANK_ID"),
        ("train", {"RANK_TABLE_FILE": "/no/such.json", "RANK_ID": "0"}, "RANK_TABLE_FILE"),
        (
            "train",
            {"RANK_TABLE_FILE": "/no/such.json", "RANK_ID": "0", "MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "1"},
            "RANK_TABLE_FILE",
        ),
        (
            "train",
            {"MS_ROLE": "MS_WORKER", "LOCMOE_LOG_DIR": "LOGS"},
            "MS_ROLE",
        ),  # had been said in a log of another job alone
        ("config", {"LOCMOE_ROUTER_FILES": "/no/such.py"}, "LOCMOE_ROUTER_FILES"),
    ],
)
def test_what_is_left_over_is_named(given, run_command, tmp_path, command, variables, named):
    given(**{name: value.replace("LOGS", str(tmp_path)) for name, value in variables.items()})
    status, lines = run_command(command)
    assert status == 2 and len(lines) == 1
    assert re.search(rf"unset {named}\b", lines[0]), lines[0]
    assert all(name in lines[0] for name in named.split())


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK_ID": "3"},
        {"RANK_ID": "3", "RANK_SIZE": "8", "DEVICE_ID": "3"},
        {"MS_WORKER_NUM": "8"},
        {"MS_SCHED_HOST": "gone"},
        {"MS_NODE_ID": "3"},
        {"RANK_TABLE_FILE": "/no/such.json"},
        {"LOCMOE_LOG_DIR": "/no/such"},
        {"LOCMOE_NODES": "2"},
        {"MS_ROLE": ""},
        {
            "LOCMOE_MESH_SECRET": "0" * 64,
            "LOCMOE_MESH_PORT": "1",
            "LOCMOE_NODE_ADDRESS": "x",
            "LOCMOE_MASTER_ADDRESS": "y",
        },
    ],
)
def test_what_is_left_over_changes_nothing(given, run_command, variables):
    """Parts that make no rank: the command runs alone, and nothing that it calls sees another job's rank."""
    given(**variables)
    assert run_command("config") == (0, [])
    check_launch("train", True)
    assert read_launch() == Launch() and not is_worker() and rank_name() == "0"
    assert not set(RANK_VARIABLES) - {"DEVICE_ID"} & set(os.environ)


def test_what_a_tool_starts_gets_no_rank_of_another_job(given):
    given(**{name: "left" for name in (*RANK_VARIABLES, *CLUSTER_VARIABLES)})
    assert {*RANK_VARIABLES, *CLUSTER_VARIABLES} & set(with_this_python()) == {"RANK_TABLE_FILE"}


def test_the_scripts_forget_the_same_variables():
    text = (REPOSITORY / "scripts" / "environment.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    forgotten = [set(words.split()) for words in re.findall(r"(?m)^    unset (\w.*)$", text)]
    assert forgotten == [set(RANK_VARIABLES), set(CLUSTER_VARIABLES)]


@pytest.mark.parametrize("rank, world_size", [(1, 8), (0, 8), (3, 4), (7, 16), (0, 1)])
def test_a_cluster_that_is_not_the_launchers_is_refused(rank, world_size):
    launch = Launch(3, 8)
    check_ranks(launch, 3, 8)
    with pytest.raises(InputError) as error:
        check_ranks(launch, rank, world_size)
    line = str(error.value)
    assert f"rank {rank} of {world_size}" in line and "rank 3 of 8" in line and "unset RANK_ID" in line
