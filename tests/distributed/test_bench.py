"""`bench all-to-all` on four ranks that play two nodes, with the dispatcher of docs/dispatchers.md among the others, on
the loads of a trace: its bytes against hand arithmetic. Times are only looked for.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from helpers.pages import OWN, write_own
from locmoe_ops.routing_trace import RoutingTrace, to_bytes
from pangu_sigma.bench.all_to_all import variants
from pangu_sigma.runtime.router_files import VARIABLE

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_msrun.sh"
DEADLINE_S = 300.0  # compilation on slow cores is most of it
TOKENS, HIDDEN, EXPERTS, RANKS, NODES = 64, 16, 8, 4, 2
ROW = re.compile(r" *(\d+) (.{22}) +([\d.]+) +([\d,]+) +([\d,]+) +([\d.]+) +(\d+)%")


def expected_bytes():
    """(inside, between) of a node, by dispatcher: 4 exchanges of fp32 rows, 2 experts on each of 2 ranks a node.

    Flat: 64 tokens x 1.25 / 8 experts = 10 slots an expert, or 12 where 4 chunks must divide them; a rank sends 2
    experts' slots to each other rank, 1 on its node and 2 on the other. Hierarchical, with 3/4 of the tokens at home:
    64 x 1.25 x 3/4 / 4 experts = 15 slots near, 5 far, so 10 in the near tier, which goes to the 1 neighbour; the far
    tier takes 4 experts' slots to the other node, and hands 2 experts' slots of 2 nodes on to the neighbour. Ragged:
    what `WANTED` says, there and back, twice: inside node 0, which sends most there, rank 0's 64 rows to rank 1, and
    between the nodes 32 rows of either of ranks 2 and 3 (at an even load it were 32 and 128 rows a way); and once to
    every other rank eight int32 numbers. The page's dispatcher: as flat, in float16.
    """
    row, node = 4 * HIDDEN, 2 * 4  # bytes of a token; ranks of a node x exchanges

    def flat(slots):
        return node * 1 * 2 * slots * row, node * 2 * 2 * slots * row

    hierarchical = node * (2 * 10 + 2 * 2 * 5) * row, node * 4 * 5 * row
    # One copy a node, of one choice: 15 slots near (16 in two chunks), and 5 of each expert of the other node that are
    # handed on; a quarter of 64 tokens x 1.25 = 20 copies, with a weight each on the way out, and a map of 4 experts' 5
    # slots.
    rail = 2 * (2 * 20 * (row + 4) + 2 * 20 * row + 4 * 5 * 4)
    return {
        "flat": flat(10),
        "flat, 2 chunks": flat(10),
        "flat, 4 chunks": flat(12),
        "hierarchical": hierarchical,
        "hierarchical, 2 chunks": hierarchical,
        "node_dedup": (node * (2 * 15 + 2 * 5) * row, rail),
        "node_dedup, 2 chunks": (node * (2 * 16 + 2 * 5) * row, rail),
        OWN["dispatchers.md"]: tuple(number // 2 for number in flat(10)),
        "ragged": (4 * 64 * row + 2 * 1 * 8 * 4, 2 * 64 * row + 2 * 2 * 8 * 4),
    }


# Experts of each rank's tokens, half and half. Rank i has experts i and 4 + i; ranks 0 and 1 are node 0.
WANTED = [(1, 1), (5, 5), (0, 7), (1, 3)]


def trace():
    """Four rows of 16 tokens at home on each rank, in an order that is not that of the ranks."""
    home = np.tile(np.arange(RANKS), 4).astype(np.int32)
    expert = np.array([[WANTED[rank][row // (2 * RANKS)]] * 16 for row, rank in enumerate(home)], np.int32)
    return RoutingTrace(
        token=np.arange(256, dtype=np.int32).reshape(16, 16),
        domain=np.zeros(16, np.int32),
        home=home,
        expert=expert[None, ..., None],
        weight=np.ones((1, 16, 16, 1), np.float32),
        node=np.array([0, 0, 1, 1] * 2, np.int32),
        num_groups=2,
    )


def test_dispatchers(tmp_path):
    (tmp_path / "trace.safetensors").write_bytes(to_bytes(trace()))
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"hidden_size": HIDDEN, "num_heads": 2, "sequence_length": 16},
                "moe": {
                    "num_experts": EXPERTS,
                    "num_groups": 2,
                    "dispatch": {"type": "hierarchical"},
                    "capacity": {"factor": 1.25, "local_share": 0.75},
                },
                "parallel": {"expert": RANKS, "ranks_per_node": RANKS // NODES},
                "optimizer": {"warmup_steps": 1},
                "train": {"steps": 1, "global_batch_size": 4, "output_dir": "run"},
                "runtime": {"join_timeout": 120},
            }
        )
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "LOCMOE_", "RANK_"))}
    done = subprocess.run(
        [
            "bash",
            str(SCRIPT),
            "--ranks-per-node",
            str(RANKS),
            "--bench",
            "all-to-all",
            "config.yaml",
            "--",
            "--tokens",
            str(TOKENS),
            "--routing",
            "trace:trace.safetensors",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={
            **kept,
            VARIABLE: str(write_own("dispatchers.md", tmp_path)),
            "VIRTUAL_ENV": sys.prefix,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    _, head, _, load, _, titles, _, *lines = done.stdout.splitlines()
    assert head == "4 ranks on 2 nodes, hidden size 16, 8 experts, capacity factor 1.25, fp32"
    assert load == "busiest expert: 3.00 times the mean load"  # 96 of 256 tokens, of 8 experts
    assert titles.split() == ["tokens", "dispatcher", "ms", "inside", "(B)", "between", "(B)", "limit", "ms", "reached"]
    assert [len(line) for line in lines] == [79] * (len(variants()) + 1)
    found = {}
    for line in lines:
        tokens, name, ms, inside, between, limit, _ = ROW.fullmatch(line).groups()
        assert int(tokens) == TOKENS and float(ms) > 0 and float(limit) > 0
        found[name.strip()] = tuple(int(number.replace(",", "")) for number in (inside, between))
    assert found == expected_bytes()
