"""`pangu-sigma plan`: what a configuration costs on a cluster, before anything runs."""

import argparse
from typing import Any

from locmoe_ops.errors import InputError
from pangu_sigma.cli.arguments import add_command, count, positive, refuse_old_name
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS
from pangu_sigma.runtime.strict_json import dumps


def add_plan(commands: Any) -> None:
    """Adds the command to the program's parser."""
    parser = add_command(
        commands, "plan", "memory, bytes and time of a job before it runs; needs no device and no MindSpore", plan
    )
    parser.add_argument(
        "--cluster", metavar="FILE", help="YAML file of nodes and hardware (pangu_sigma/planner/cluster.py)"
    )
    parser.add_argument(
        "--nodes",
        type=positive,
        metavar="N",
        help="nodes (default: parallel.nodes, else the fewest that hold all experts)",
    )
    parser.add_argument(
        "--ranks-per-node", type=positive, metavar="M", help="ranks a node (default: parallel.ranks_per_node)"
    )
    refuse_old_name(parser, "--devices-per-node", "--ranks-per-node")
    parser.add_argument(
        "--hardware", metavar="NAME", help="file of configs/hardware, or a path (default: by runtime.device and chip)"
    )
    parser.add_argument(
        "--tokens", type=count, metavar="N", help="say how long N tokens take, as in 329e9 (default: the run's)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="AXIS[=V,V]",
        help="plan all values of ep, tp, dp, capacity or router, and show the Pareto front; may be repeated",
    )


def plan(config: Config, options: argparse.Namespace) -> int:
    """Prints a plan, or with `options.sweep` a table of them; `options` are those that `add_plan` adds.

    Raises InputError: something given is wrong, or does not fit together.
    """
    from pangu_sigma.planner.cluster import cluster_from_file, cluster_of
    from pangu_sigma.planner.fits import advice
    from pangu_sigma.planner.plan import as_json, make_plan
    from pangu_sigma.planner.report import report
    from pangu_sigma.planner.sweep import parse_axes, sweep, sweep_json, table

    if options.cluster is None:
        cluster = cluster_of(config, options.nodes, options.ranks_per_node, options.hardware)
    elif options.nodes is None and options.ranks_per_node is None:
        cluster = cluster_from_file(config, options.cluster, options.hardware)
    else:
        raise InputError(
            "--cluster names a file, which says how many nodes there are; expected no --nodes or --ranks-per-node "
            "with it"
        )
    if options.sweep:
        found = sweep(config, cluster, parse_axes(options.sweep, config, cluster))
        print(dumps(sweep_json(found), indent=1) if options.json else table(found))
        return SUCCESS
    planned = make_plan(config, cluster)
    tokens = options.tokens or config.train.steps * planned.job.global_tokens
    line = None if planned.fits else advice(config, cluster)
    if options.json:
        print(dumps({**as_json(planned, tokens), "advice": line}, indent=1))
    else:
        print(report(planned, tokens, line))
    return SUCCESS
