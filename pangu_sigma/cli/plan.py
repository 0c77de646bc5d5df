"""`pangu-sigma plan`: what a configuration costs on a cluster, before anything runs."""

import argparse
from typing import TYPE_CHECKING, Any, Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.cli.arguments import add_command, count, positive
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS
from pangu_sigma.runtime.strict_json import dumps

if TYPE_CHECKING:
    from pangu_sigma.planner.cluster import Cluster


def add_plan(commands: Any) -> None:
    """Adds the command to the program's parser."""
    plan = add_command(
        commands, "plan", "memory, bytes and time of a job before it runs; needs no device and no MindSpore", _plan
    )
    plan.add_argument(
        "--cluster", metavar="FILE", help="YAML file of nodes and hardware (pangu_sigma/planner/cluster.py)"
    )
    plan.add_argument("--nodes", type=positive, metavar="N", help="nodes (default: the fewest that hold all experts)")
    plan.add_argument(
        "--devices-per-node", type=positive, metavar="M", help="ranks a node (default: parallel.ranks_per_node)"
    )
    plan.add_argument(
        "--hardware", metavar="NAME", help="file of configs/hardware, or a path (default: by runtime.device)"
    )
    plan.add_argument(
        "--tokens", type=count, metavar="N", help="say how many days N tokens take, as in 329e9 (default: the run's)"
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="AXIS[=V,V]",
        help="plan all values of ep, tp, dp, capacity or router, and show the Pareto front; may be repeated",
    )


def _plan(config: Config, options: argparse.Namespace) -> int:
    plan(
        config,
        options.cluster,
        options.nodes,
        options.devices_per_node,
        options.hardware,
        options.tokens,
        options.json,
        options.sweep,
    )
    return SUCCESS


def plan(
    config: Config,
    cluster_file: Optional[str],
    nodes: Optional[int],
    devices_per_node: Optional[int],
    hardware: Optional[str],
    tokens: Optional[int],
    as_object: bool,
    axes: Sequence[str],
) -> None:
    """Prints a plan, or with `axes` a table of them.

    Args:
        cluster_file, or nodes and devices_per_node, and hardware: see `pangu_sigma.planner.cluster`.
        tokens: to say how many days they take; None: those of the configured run.
        as_object: print JSON in place of text.

    Raises InputError: something given is wrong, or does not fit together.
    """
    from pangu_sigma.planner.fits import advice
    from pangu_sigma.planner.plan import as_json, make_plan
    from pangu_sigma.planner.report import report
    from pangu_sigma.planner.sweep import parse_axes, sweep, sweep_json, table

    cluster = _cluster(config, cluster_file, nodes, devices_per_node, hardware)
    if axes:
        found = sweep(config, cluster, parse_axes(axes, config, cluster))
        print(dumps(sweep_json(found), indent=1) if as_object else table(found))
        return
    planned = make_plan(config, cluster)
    wanted = tokens or config.train.steps * planned.job.global_tokens
    line = None if planned.fits else advice(config, cluster)
    print(dumps({**as_json(planned, wanted), "advice": line}, indent=1) if as_object else report(planned, wanted, line))


def _cluster(
    config: Config, file: Optional[str], nodes: Optional[int], devices_per_node: Optional[int], hardware: Optional[str]
) -> "Cluster":
    from pangu_sigma.planner.cluster import cluster_from_file, cluster_of

    if file is None:
        return cluster_of(config, nodes, devices_per_node, hardware)
    if nodes is not None or devices_per_node is not None:
        raise InputError(
            "--cluster names a file, which says how many nodes there are; expected no --nodes or --devices-per-node beside it"
        )
    return cluster_from_file(config, file, hardware)
