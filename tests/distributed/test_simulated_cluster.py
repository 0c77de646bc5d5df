"""Jobs on simulated nodes: what the launcher makes of several machines, and the bytes of a run against the interfaces'
count.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.ranks import LIGHT_MSRUN

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
DEADLINE_S = 240.0  # compilation on slow cores is most of it


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


pytestmark = pytest.mark.skipif(not _can_simulate(), reason="needs root, unshare and iproute2")

# Python imports `sitecustomize` at start-up; this one gives the command line another `train` to call.
STAND_IN = """
import os, sys, types
from locmoe_ops.errors import CollectiveError
from pangu_sigma.runtime.join import join_ranks

def train(config):
    rank, world_size = int(os.environ["RANK_ID"]), int(os.environ["MS_WORKER_NUM"])
    mesh = join_ranks(config, rank, world_size)
    where = os.environ["LOCMOE_NODE_ADDRESS"]
    print("rank", rank, "of", world_size, "at", where, "ranks a node", config.parallel.ranks_per_node)
    mesh.barrier(range(world_size), "before")
    if rank == 3:
        raise CollectiveError("rank 3: out of luck")
    mesh.barrier(range(world_size), "never")

if "MS_ROLE" in os.environ:
    module = types.ModuleType("pangu_sigma.train.run")
    module.train = train
    sys.modules[module.__name__] = module
"""


@pytest.fixture
def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "LOCMOE_", "RANK_"))}
    return {**kept, "VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def simulate(environment, folder, *arguments):
    return subprocess.run(
        ["bash", str(SCRIPTS / "simulate_cluster.sh"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def test_launcher_on_two_nodes_of_two_workers(environment, tmp_path):
    """`--ranks-per-node` and `parallel.ranks_per_node` come from the cluster; each node shows its first rank, keeps
    its own logs, and tells of a rank that fails.
    """
    (tmp_path / "sitecustomize.py").write_text((LIGHT_MSRUN / "sitecustomize.py").read_text() + STAND_IN)
    (tmp_path / "config.yaml").write_text(f"train: {{output_dir: {tmp_path}/run}}\nruntime: {{join_timeout: 60}}\n")
    done = simulate(
        {**environment, "PYTHONPATH": str(tmp_path)},
        tmp_path,
        "--nodes",
        "2",
        "--ranks-per-node",
        "2",
        "--keep-logs",
        "logs",
        "--",
        str(SCRIPTS / "train_msrun.sh"),
        "config.yaml",
    )
    launch = tmp_path / "run" / "logs" / "launch_1"
    lines = {rank: f"rank {rank} of 4 at 198.18.0.{1 + rank // 2} ranks a node 2" for rank in range(4)}
    found = {rank: (launch / f"node_{rank // 2}" / f"worker_{rank}.log").read_text().splitlines() for rank in range(4)}
    assert {rank: words[0] for rank, words in found.items()} == lines, done.stderr
    assert done.stdout.splitlines()[:2] == [f"logs: {launch}/node_0", lines[0]]
    assert (tmp_path / "logs" / "node_1.log").read_text().splitlines()[:2] == [f"logs: {launch}/node_1", lines[2]]
    assert done.returncode == 1
    for node in range(2):  # each node tells the first failure once, in one line, as one machine does
        told = (tmp_path / "logs" / f"node_{node}.log").read_text().splitlines()
        (line,) = [line for line in told if "error" in line]
        assert line.startswith("pangu-sigma: error: rank ") and "rank 3" in line
    assert all(words[-1].startswith("pangu-sigma: error: ") for words in found.values())


def test_inter_node_bytes_are_those_of_the_interfaces(tiny_data, environment, tmp_path):
    """Metrics count payload of model traffic. Frames of 9000 bytes add 0.7 % of headers, acknowledgements less than 1
    %. What is counted inside nodes and between them, dispatcher by dispatcher: test_dispatch.py, test_traffic.py.

    Besides, msrun starts, ranks join (some kilobytes) and sum up their metrics (200 B a step): against megabytes of
    gradients and tokens that leaves them within 5 %, and never below.
    """
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "hidden_size": 256,
                    "num_heads": 2,
                    "dense_layers": 0,
                    "sparse_layers": 1,
                    "sequence_length": 32,
                },
                "moe": {"num_experts": 4, "dispatch": {"type": "hierarchical"}},
                "parallel": {"expert": 2},
                "data": {"path": str(tiny_data)},
                "optimizer": {"schedule": "constant"},
                "train": {
                    "steps": 3,
                    "global_batch_size": 32,
                    "eval_rows": 0,
                    "cosines": False,  # a forward pass that is no part of a step
                    "output_dir": str(tmp_path / "run"),
                },
            }
        )
    )
    done = simulate(
        environment,
        tmp_path,
        "--nodes",
        "2",
        "--ranks-per-node",
        "1",
        "--rate",
        "1gbit",
        "--counters",
        "counters.json",
        "--",
        str(SCRIPTS / "train_msrun.sh"),
        "config.yaml",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counted, tokens = (sum(record[f"comm/{cause}inter_node(B)"] for record in records) for cause in ("", "all_to_all/"))
    interfaces = json.loads((tmp_path / "counters.json").read_text())["interfaces"]
    sent, received = (
        sum(one[name]["after"] - one[name]["before"] for one in interfaces) for name in ("tx_bytes", "rx_bytes")
    )
    assert len(records) == 3 and counted > 4e6 and tokens > 1e6
    assert sent == pytest.approx(received, abs=2 * 9014)  # a last frame may be under way
    assert counted <= sent <= 1.05 * counted
