"""What would make a configuration fit, where it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Callable, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.cluster import Cluster
from pangu_sigma.planner.hardware import load_hardware, shipped_hardware
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.memory import GB, rank_memory

_MOST_NODES = 16  # times as many as there are
_MOST_SETTINGS = 2


@dataclass(frozen=True)
class Change:
    """`settings`: what to set, as words for the command line; `nodes` that it takes; `memory`: bytes of a rank then."""

    settings: tuple[str, ...]
    nodes: int
    memory: float


def nearest_change(config: Config, cluster: Cluster) -> Optional[Change]:
    """The change of fewest settings, at most two, with which a rank's tensors fit; of equally few, that which takes the
    fewest nodes, then that which leaves most free.

    Settings are rows of a micro-batch, capacity factor, optimizer state shared out over replicas, experts' state on the
    host, degrees of tensor and expert parallelism, and nodes. Where no such change does, the shipped hardware of more
    memory, the smallest first, alone or with such a change. None where nothing does.
    """
    options = _options(config, cluster)
    for words, machine in [((), cluster), *_larger(config, cluster)]:
        for number in range(0 if words else 1, _MOST_SETTINGS + 1):
            found = [
                change
                for axes in combinations(options, number)
                for values in product(*axes)
                if (change := _tried(config, machine, words, values)) is not None
            ]
            if found:
                return min(found, key=lambda change: (change.nodes, change.memory))
    return None


def _larger(config: Config, cluster: Cluster) -> list[tuple[tuple[str, ...], Cluster]]:
    """Words and cluster for each shipped hardware of more memory that computes in the configuration's precision."""
    known = [(name, load_hardware(name)) for name in shipped_hardware()]
    usable = [
        (name, hardware)
        for name, hardware in known
        if hardware.memory.capacity_gb.value > cluster.hardware.memory.capacity_gb.value
        and getattr(hardware.compute.peak_tflops, config.runtime.precision) is not None
    ]
    ordered = sorted(usable, key=lambda each: each[1].memory.capacity_gb.value)
    return [((f"--hardware {name}",), replace(cluster, hardware=hardware)) for name, hardware in ordered]


_Option = tuple[str, Callable[[Config, Cluster], "tuple[Config, Cluster]"]]


def _options(config: Config, cluster: Cluster) -> list[list[_Option]]:
    """One list a setting: its other values, each with its words."""
    rows = plan_job(config, cluster.nodes, cluster.devices_per_node).rows
    parallel, capacity = config.parallel, config.moe.capacity
    return [
        [_set("train", "micro_batch_size", value) for value in range(rows - 1, 0, -1) if rows % value == 0],
        [_set("moe.capacity", "factor", 1.0)] if capacity.mode == "factor" and capacity.factor > 1.0 else [],
        [_set("optimizer", "shard", "data_parallel")] if config.optimizer.shard == "none" else [],
        [_set("optimizer", "experts", "host_dense")] if config.optimizer.experts == "device" else [],
        [_set("parallel", "tensor", parallel.tensor << i) for i in range(1, 4)],
        [_set("parallel", "expert", parallel.expert << i) for i in range(1, 8)],
        [_more_nodes(cluster.nodes << i) for i in range(1, _MOST_NODES.bit_length())],
    ]


def _set(section: str, name: str, value: Any) -> _Option:
    return f"--set {section}.{name}={value}", lambda config, cluster: (
        with_value(config, f"{section}.{name}", value),
        cluster,
    )


def _more_nodes(nodes: int) -> _Option:
    return f"--nodes {nodes}", lambda config, cluster: (config, replace(cluster, nodes=nodes))


def with_value(config: Any, path: str, value: Any) -> Any:
    """A copy of the configuration with one key changed."""
    name, _, rest = path.partition(".")
    return replace(config, **{name: with_value(getattr(config, name), rest, value) if rest else value})


def _tried(config: Config, cluster: Cluster, words: tuple[str, ...], options: tuple[_Option, ...]) -> Optional[Change]:
    for _, change in options:
        config, cluster = change(config, cluster)
    memory = _memory(config, cluster)
    return None if memory is None else Change((*words, *(text for text, _ in options)), cluster.nodes, memory)


def _memory(config: Config, cluster: Cluster) -> Optional[float]:
    """Bytes of a rank, or None where it does not fit or the settings do not fit together."""
    try:
        job = plan_job(config, cluster.nodes, cluster.devices_per_node)
    except InputError:
        return None
    total = rank_memory(job, cluster.hardware).total
    return (
        total
        if total * cluster.hardware.sharing(job.topology) <= cluster.hardware.memory.capacity_gb.value * GB
        else None
    )


def advice(config: Config, cluster: Cluster) -> str:
    """The nearest change that makes the configuration fit, and memory then; or where none was found."""
    change = nearest_change(config, cluster)
    if change is None:
        return "none of two settings (micro-batch, capacity, optimizer state, tensor, expert, nodes)"
    return f"{' '.join(change.settings)} ({change.memory / GB:.1f} GB)"
