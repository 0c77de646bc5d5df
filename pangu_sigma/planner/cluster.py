"""How many nodes, of how many devices, of which kind: from the command line or from a YAML file.

nodes: 16
ranks_per_node: 8
hardware: 910a            # a file of configs/hardware, or a path
network:                  # in place of the hardware's own, where a cluster's network is another
  bandwidth_gb_s: {value: 5.0, source: "hccl_test on this cluster"}
  latency_us: {value: 20, assumption: true}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.ascend import runs_on_ascend
from pangu_sigma.config.chips import CHIPS, DEFAULT_CHIP
from pangu_sigma.config.load import section_from_dict
from pangu_sigma.config.schema import Config, key
from pangu_sigma.config.strict_yaml import parse_yaml, read_text
from pangu_sigma.planner.hardware import Hardware, Link, check_figures, load_hardware

_CPU = "cpu"  # where neither file nor command line names a kind, off Ascend


@dataclass(frozen=True)
class ClusterFile:
    """Keys of the YAML file."""

    nodes: int = key(1, "nodes", minimum=1)
    ranks_per_node: Optional[int] = key(None, "ranks a node; null: as the hardware has", minimum=1)
    hardware: Optional[str] = key(
        None, "name in configs/hardware, or path of a YAML file; null: by runtime.device and runtime.chip"
    )
    network: Optional[Link] = key(None, "links between nodes; null: the hardware's own")


@dataclass(frozen=True)
class Cluster:
    """`nodes` of `ranks_per_node` ranks each, and what they are."""

    nodes: int
    ranks_per_node: int
    hardware: Hardware


def cluster_from_file(config: Config, path: str, hardware: Optional[str]) -> Cluster:
    """The cluster that a file describes.

    Args:
        config: of the job.
        path: of the file.
        hardware: name or path of other hardware than the file's; None: the file's.

    Raises:
        InputError: the file, or the hardware that it names, is unusable, or disagrees with the configuration.
    """
    try:
        given: ClusterFile = section_from_dict(ClusterFile, parse_yaml(read_text(path), path), "")
        if given.network is not None:
            check_figures(given.network, "network.")
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(path) else f"{path}: {error}") from None
    cluster = cluster_of(config, given.nodes, given.ranks_per_node, hardware or given.hardware)
    if given.network is None:
        return cluster
    return replace(cluster, hardware=replace(cluster.hardware, network=given.network))


def cluster_of(config: Config, nodes: Optional[int], ranks_per_node: Optional[int], hardware: Optional[str]) -> Cluster:
    """A cluster without a file.

    Args:
        config: of the job.
        nodes: None: `parallel.nodes`, else the fewest that hold one copy of the experts.
        ranks_per_node: None: `parallel.ranks_per_node`, else as the hardware has.
        hardware: as in `ClusterFile`.

    Raises:
        InputError: the hardware is unknown, or `ranks_per_node` is not what the configuration says.
    """
    machine = load_hardware(hardware or default_hardware(config))
    parallel = config.parallel
    wanted = parallel.ranks_per_node
    if None not in (ranks_per_node, wanted) and ranks_per_node != wanted:
        raise InputError(
            f"--ranks-per-node is {ranks_per_node} and parallel.ranks_per_node {wanted}; expected the same, or null"
        )
    devices = ranks_per_node or wanted or machine.ranks_per_node
    fewest = -(-parallel.expert * parallel.tensor // devices)
    return Cluster(nodes or parallel.nodes or fewest, devices, machine)


def default_hardware(config: Config) -> str:
    """The file of configs/hardware for a configuration alone: by `runtime.device`, and where that is ascend by
    `runtime.chip`.

    Raises InputError: none is shipped for that chip.
    """
    if not runs_on_ascend(config):
        return _CPU
    chip = DEFAULT_CHIP if config.runtime.chip == "auto" else config.runtime.chip
    name: Optional[str] = CHIPS[chip].hardware.value
    if name is None:
        raise InputError(
            f"runtime.chip is {chip}, of which no hardware file is shipped; expected --hardware with one that has "
            f"chip: {chip}"
        )
    return name
