"""`pangu-sigma plan`: what it prints."""

from __future__ import annotations

from typing import Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.strict_json import dumps
from pangu_sigma.tools.plan.cluster import Cluster, cluster_from_file, cluster_of
from pangu_sigma.tools.plan.fits import advice
from pangu_sigma.tools.plan.plan import as_json, make_plan
from pangu_sigma.tools.plan.report import report
from pangu_sigma.tools.plan.sweep import parse_axes, sweep, sweep_json, table


def plan(config: Config, cluster_file: Optional[str], nodes: Optional[int], devices_per_node: Optional[int], hardware: Optional[str],
         tokens: Optional[int], as_object: bool, axes: Sequence[str]) -> None:
    """Prints a plan, or with `axes` a table of them.

    Args:
        cluster_file, or nodes and devices_per_node, and hardware: see `cluster.py`.
        tokens: to say how many days they take; None: those of the configured run.
        as_object: print JSON in place of text.

    Raises InputError: something given is wrong, or does not fit together.
    """
    cluster = _cluster(config, cluster_file, nodes, devices_per_node, hardware)
    if axes:
        found = sweep(config, cluster, parse_axes(axes, config, cluster))
        print(dumps(sweep_json(found), indent=1) if as_object else table(found))
        return
    planned = make_plan(config, cluster)
    wanted = tokens or config.train.steps * planned.job.global_tokens
    line = None if planned.fits else advice(config, cluster)
    print(dumps({**as_json(planned, wanted), "advice": line}, indent=1) if as_object else report(planned, wanted, line))


def _cluster(config: Config, file: Optional[str], nodes: Optional[int], devices_per_node: Optional[int],
             hardware: Optional[str]) -> Cluster:
    if file is None:
        return cluster_of(config, nodes, devices_per_node, hardware)
    if nodes is not None or devices_per_node is not None:
        raise InputError("--cluster names a file, which says how many nodes there are; expected no --nodes or --devices-per-node beside it")
    return cluster_from_file(config, file, hardware)
