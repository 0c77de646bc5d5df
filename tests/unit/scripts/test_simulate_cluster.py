"""The simulated cluster's options and what it would run; what it runs: tests/distributed/test_simulated_cluster.py."""

import pytest

SCRIPT = "simulate_cluster.sh"


def test_dry_run_shows_nodes_and_what_the_command_is_told(run_script):
    done = run_script(
        SCRIPT, "--nodes", "2", "--ranks-per-node=3", "--rate", "200mbit", "--dry-run", "--", "echo", "hi"
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == [
        "node 0: address 198.18.0.1",
        "node 1: address 198.18.0.2",
    ]
    assert {"LOCMOE_NODES=2 \\", "LOCMOE_RANKS_PER_NODE=3 \\"} <= set(lines) and lines[-1] == "echo hi "


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--workers-per-node", "2"], "--workers-per-node is called --ranks-per-node now; expected that"),
        (["--workers-per-node=2"], "--workers-per-node is called --ranks-per-node now; expected that"),
        (["--nodes", "2", "--", "true"], "--ranks-per-node: found '', expected a number from 1 to 9999"),
        (["--nodes", "0", "--ranks-per-node", "2", "--", "true"], "--nodes: found '0'"),
        (["--nodes", "2", "--ranks-per-node", "2"], "no command given"),
    ],
)
def test_bad_arguments_are_one_line(run_script, arguments, fragment):
    done = run_script(SCRIPT, *arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"{SCRIPT}: error: {fragment}")
