"""`pangu-sigma plan --sweep`: what other degrees of parallelism, capacities and routers would cost, and which of them
are worth a look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Sequence

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import router_spec, routers
from pangu_sigma.config.derived import router_names
from pangu_sigma.config.schema import Config
from pangu_sigma.config.strict_yaml import shown
from pangu_sigma.planner.cluster import Cluster
from pangu_sigma.planner.fits import with_value
from pangu_sigma.planner.memory import GB
from pangu_sigma.planner.plan import JobPlan, make_plan
from pangu_sigma.runtime.text_table import TableColumn, text_table

AXES = ("ep", "tp", "dp", "capacity", "router")
_KEYS = {
    "ep": "parallel.expert",
    "tp": "parallel.tensor",
    "capacity": "moe.capacity.factor",
    "router": "moe.router.type",
}
_ROUTERS = ("hash", "switch", "locmoe")  # unless others are asked for
_MOST_POINTS = 2000


@dataclass(frozen=True)
class Point:
    """One combination: its `plan`, and whether it is on the Pareto front (`best`)."""

    plan: JobPlan
    best: bool = False


@dataclass(frozen=True)
class Sweep:
    """`points` in the order of time; `impossible`: combinations that do not fit together."""

    points: tuple[Point, ...]
    impossible: int


def parse_axes(texts: Sequence[str], config: Config, cluster: Cluster) -> dict[str, list[Any]]:
    """The values to try, in the order of `AXES`.

    Args:
        texts: `AXIS` or `AXIS=V,V`.
        config, cluster: from which the values of an axis without any follow.

    Raises:
        InputError: an axis is unknown or given twice, or a value is not one of it.
    """
    given: dict[str, list[Any]] = {}
    for text in texts:
        axis, equals, words = text.partition("=")
        if axis not in AXES:
            raise InputError(f"--sweep {shown(text)}: expected one of {', '.join(AXES)}, as in ep=8,16")
        if axis in given:
            raise InputError(f"--sweep {shown(text)}: {axis} is given twice; expected all its values in one list")
        given[axis] = (
            [_value(axis, word, text) for word in words.split(",")] if equals else _defaults(axis, config, cluster)
        )
    return {axis: given[axis] for axis in AXES if axis in given}


def _value(axis: str, word: str, text: str) -> Any:
    if axis == "router":
        if word not in routers():
            raise InputError(f"--sweep {shown(text)}: found {shown(word)}, expected some of {', '.join(routers())}")
        return word
    try:
        value = float(word) if axis == "capacity" else int(word)
        if 0 < value < 1e9:
            return value
    except ValueError:
        pass
    raise InputError(f"--sweep {shown(text)}: found {shown(word)}, expected a number above 0")


def _defaults(axis: str, config: Config, cluster: Cluster) -> list[Any]:
    ranks = cluster.nodes * cluster.ranks_per_node
    doublings = [1 << i for i in range(ranks.bit_length())]
    if axis == "ep":
        return [degree for degree in doublings if config.moe.num_experts % degree == 0]
    if axis == "tp":
        return [
            degree
            for degree in doublings
            if cluster.ranks_per_node % degree == 0 and config.model.num_heads % degree == 0
        ]
    if axis == "dp":
        return [ranks // config.parallel.tensor * 2**i // 2 for i in range(4)]
    return [1.0, 1.25, 1.5, 2.0] if axis == "capacity" else list(_ROUTERS)


def sweep(config: Config, cluster: Cluster, axes: dict[str, list[Any]]) -> Sweep:
    """Plans every combination.

    Args:
        config, cluster: what is changed.
        axes: values by axis, as `parse_axes` gives them.

    Raises:
        InputError: there are too many combinations, or none is possible; then the first reason is told.
    """
    combinations = list(product(*axes.values()))
    if len(combinations) > _MOST_POINTS:
        raise InputError(f"--sweep: found {len(combinations)} combinations, expected at most {_MOST_POINTS}")
    plans, reasons = [], []
    for values in combinations:
        try:
            plans.append(make_plan(*_changed(config, cluster, dict(zip(axes, values)))))
        except InputError as reason:
            reasons.append(reason)
    if not plans:
        raise InputError(f"--sweep: none of {len(combinations)} combinations is possible; the first: {reasons[0]}")
    ordered = sorted(plans, key=lambda plan: plan.time.total)
    return Sweep(tuple(Point(plan, _is_pareto_optimal(plan, ordered)) for plan in ordered), len(reasons))


def _changed(config: Config, cluster: Cluster, values: dict[str, Any]) -> tuple[Config, Cluster]:
    """With a value of each axis, and what a router asks of other keys."""
    changes = {_KEYS[axis]: value for axis, value in values.items() if axis != "dp"}
    if "router" in values:
        spec = router_spec(values["router"])
        if spec.top_k is not None:
            changes["moe.router.top_k"] = spec.top_k
        if spec.expert_choice:
            changes["moe.dispatch.drop_priority"] = "weight"
    for path, value in changes.items():
        config = with_value(config, path, value)
    if "dp" in values:
        ranks = values["dp"] * config.parallel.tensor
        if ranks % cluster.ranks_per_node:
            raise InputError(f"--sweep dp={values['dp']}: {ranks} ranks do not fill nodes of {cluster.ranks_per_node}")
        cluster = replace(cluster, nodes=ranks // cluster.ranks_per_node)
    return config, cluster


def _is_pareto_optimal(plan: JobPlan, others: Sequence[JobPlan]) -> bool:
    """No other plan of the same router is at least as good in everything, and better in something; what does not fit is
    none.
    """
    mine = _costs(plan)
    rivals = [_costs(other) for other in others if _router(other) == _router(plan) and other.fits]
    return plan.fits and not any(all(a <= b for a, b in zip(rival, mine)) and rival != mine for rival in rivals)


def _router(plan: JobPlan) -> str:
    return router_names(plan.job.config)


def _costs(plan: JobPlan) -> tuple[float, float, float, float]:
    """Less is better: seconds a step, ranks, memory, and slots that experts lack."""
    return plan.time.total, plan.job.topology.world_size, plan.memory.total, -plan.job.config.moe.capacity.factor


def table(found: Sweep, everything: bool = False) -> str:
    """What was `found`, as text: the Pareto front, or all points where nothing fits or `everything` is asked
    for.
    """
    best = [point for point in found.points if point.best]
    shown_points = found.points if everything or not best else best
    titles = ("ep", "tp", "dp", "nodes", "capac.", "GB", "fits", "step s", "a2a", "MFU", "GB out")
    columns = [TableColumn("router", "<"), *map(TableColumn, titles)]
    lines = text_table(columns, [_cells(point.plan) for point in shown_points])
    kept = f"none of {len(found.points)} plans fits"
    if best:
        kept = f"{len(best)} of {len(found.points)} plans are on the Pareto front"
    lines += [
        "",
        f"{kept}; {found.impossible} combinations do not fit together",
        "best: no other plan of the same router has as short a step on as few ranks,",
        "with as little memory and as many slots.  GB out: between nodes, a step",
    ]
    return "\n".join(lines)


def _cells(plan: JobPlan) -> list[str]:
    topology, config = plan.job.topology, plan.job.config
    between = sum(total.inter_node for total in plan.traffic.values()) / GB
    return [
        router_names(config),
        *map(str, (topology.expert, topology.tensor, topology.data, topology.nodes)),
        f"{config.moe.capacity.factor:.2f}",
        f"{plan.memory.total / GB:.1f}",
        "yes" if plan.fits else "no",
        f"{plan.time.total:.3f}",
        f"{plan.time.all_to_all_share:.0%}",
        f"{plan.mfu:.1%}",
        f"{between:.1f}",
    ]


def sweep_json(found: Sweep) -> list[dict[str, Any]]:
    """One object for each point that was `found`."""
    return [
        {
            "router": _router(p.plan),
            "expert": p.plan.job.topology.expert,
            "tensor": p.plan.job.topology.tensor,
            "data": p.plan.job.topology.data,
            "nodes": p.plan.job.topology.nodes,
            "capacity_factor": p.plan.job.config.moe.capacity.factor,
            "memory": p.plan.memory.total,
            "fits": p.plan.fits,
            "best": p.best,
            "seconds": p.plan.time.total,
            "all_to_all_share": p.plan.time.all_to_all_share,
            "mfu": p.plan.mfu,
            "inter_node": sum(total.inter_node for total in p.plan.traffic.values()),
        }
        for p in found.points
    ]
