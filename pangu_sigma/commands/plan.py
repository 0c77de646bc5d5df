"""The command line of `pangu-sigma plan`."""

import argparse
from typing import Any

from pangu_sigma.commands.parts import add_command, count, positive
from pangu_sigma.config.schema import Config
from pangu_sigma.reporting import SUCCESS


def add_plan(commands: Any) -> None:
    """Adds the command to the program's parser."""
    plan = add_command(commands, "plan", "memory, bytes and time of a job before it runs; needs no device and no MindSpore", _plan)
    plan.add_argument("--cluster", metavar="FILE", help="YAML file of nodes and hardware (pangu_sigma/tools/plan/cluster.py)")
    plan.add_argument("--nodes", type=positive, metavar="N", help="nodes (default: the fewest that hold all experts)")
    plan.add_argument("--devices-per-node", type=positive, metavar="M", help="ranks a node (default: parallel.ranks_per_node)")
    plan.add_argument("--hardware", metavar="NAME", help="file of configs/hardware, or a path (default: by runtime.device)")
    plan.add_argument("--tokens", type=count, metavar="N", help="say how many days N tokens take, as in 329e9 (default: the run's)")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument("--sweep", action="append", default=[], metavar="AXIS[=V,V]",
                      help="plan all values of ep, tp, dp, capacity or router, and show the Pareto front; may be repeated")


def _plan(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.plan.command import plan

    plan(config, options.cluster, options.nodes, options.devices_per_node, options.hardware, options.tokens, options.json, options.sweep)
    return SUCCESS
