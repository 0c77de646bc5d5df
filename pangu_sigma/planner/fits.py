"""What would make a configuration fit, where it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.check_chip import with_chip
from pangu_sigma.config.chips import CHIPS
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.cluster import Cluster
from pangu_sigma.planner.hardware import load_hardware, shipped_hardware
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.memory import GB, rank_memory

_MOST_NODES = 16  # times as many as there are
_MOST_SETTINGS = 2


@dataclass(frozen=True)
class Change:
    """A way to make a configuration fit.

    Attributes:
        settings: what to set, as words for the command line.
        nodes: that it takes.
        memory: bytes of a rank then.
    """

    settings: tuple[str, ...]
    nodes: int
    memory: float


def nearest_change(config: Config, cluster: Cluster) -> Optional[Change]:
    """The change of fewest settings, at most two, with which a rank's tensors fit; of equally few, that which takes the
    fewest nodes, then that which leaves most free.

    Settings are rows of a micro-batch, capacity factor, optimizer state shared out over replicas, experts' state on the
    host, degrees of tensor and expert parallelism, and nodes. Where no such change does, the shipped hardware that has
    more memory and computes in the configuration's precision, the smallest first, alone or with such a change. None
    where nothing does.
    """
    capacity, precision = cluster.hardware.memory.capacity_gb.value, config.runtime.precision
    machines: list[tuple[tuple[str, ...], Config, Cluster]] = [((), config, cluster)]
    shipped = [(name, load_hardware(name)) for name in shipped_hardware()]
    for name, hardware in sorted(shipped, key=lambda each: each[1].memory.capacity_gb.value):
        if hardware.memory.capacity_gb.value > capacity and hardware.compute.peak_tflops.of(precision) is not None:
            changes = _for_chip(config, hardware.chip)
            words = (f"--hardware {name}", *(f"--set {path}={str(value).lower()}" for path, value in changes.items()))
            moved = config
            for path, value in changes.items():
                moved = with_value(moved, path, value)
            machines.append((words, moved, replace(cluster, hardware=hardware)))
    options = _options(config, cluster)
    for words, fitting, machine in machines:
        for number in range(0 if words else 1, _MOST_SETTINGS + 1):
            found = [
                change
                for axes in combinations(options, number)
                for settings in product(*axes)
                if (change := _tried(fitting, machine, words, settings)) is not None
            ]
            if found:
                return min(found, key=lambda change: (change.nodes, change.memory))
    return None


_Setting = tuple[str, Any]  # path of a key, or "nodes"; and its value


def _options(config: Config, cluster: Cluster) -> list[list[_Setting]]:
    """The other values of each setting."""
    rows = plan_job(config, cluster.nodes, cluster.devices_per_node).rows
    parallel, capacity = config.parallel, config.moe.capacity
    return [
        [("train.micro_batch_size", value) for value in range(rows - 1, 0, -1) if rows % value == 0],
        [("moe.capacity.factor", 1.0)] if capacity.mode == "factor" and capacity.factor > 1.0 else [],
        [("optimizer.shard", "data_parallel")] if config.optimizer.shard == "none" else [],
        [("optimizer.experts", "host_dense")] if config.optimizer.experts == "device" else [],
        [("parallel.tensor", parallel.tensor << i) for i in range(1, 4)],
        [("parallel.expert", parallel.expert << i) for i in range(1, 8)],
        [("nodes", cluster.nodes << i) for i in range(1, _MOST_NODES.bit_length())],
    ]


def _for_chip(config: Config, chip: Optional[str]) -> dict[str, Any]:
    """Keys that name the configuration's chip, or are for it alone, with their values for another `chip`."""
    if config.runtime.chip == "auto" or chip is None:
        return {}
    changes: dict[str, Any] = {"runtime.chip": chip}
    if config.runtime.hccl.unchecked_all_to_all and CHIPS[chip].cluster.value is None:
        changes["runtime.hccl.unchecked_all_to_all"] = False
    return changes


def _tried(
    config: Config, cluster: Cluster, words: tuple[str, ...], settings: tuple[_Setting, ...]
) -> Optional[Change]:
    """The change, or None where a rank does not fit then or the settings do not fit together."""
    for path, value in settings:
        if path == "nodes":
            cluster = replace(cluster, nodes=value)
        else:
            config = with_value(config, path, value)
    try:
        config = with_chip(config, cluster.hardware.chip, cluster.hardware.name)
        job = plan_job(config, cluster.nodes, cluster.devices_per_node)
    except InputError:
        return None
    hardware = cluster.hardware
    total = rank_memory(job, hardware).total
    if total * hardware.sharing(job.topology) > hardware.memory.capacity_gb.value * GB:
        return None
    texts = [f"--nodes {value}" if path == "nodes" else f"--set {path}={value}" for path, value in settings]
    return Change((*words, *texts), cluster.nodes, total)


def with_value(config: Any, path: str, value: Any) -> Any:
    """A copy of the configuration (or section) `config` with one key changed: the one of that `path` has `value`."""
    name, _, rest = path.partition(".")
    return replace(config, **{name: with_value(getattr(config, name), rest, value) if rest else value})


def advice(config: Config, cluster: Cluster) -> str:
    """The nearest change that makes the configuration fit, and memory then; or where none was found."""
    change = nearest_change(config, cluster)
    if change is None:
        return "none of two settings (micro-batch, capacity, optimizer state, tensor, expert, nodes)"
    return f"{' '.join(change.settings)} ({change.memory / GB:.1f} GB)"
