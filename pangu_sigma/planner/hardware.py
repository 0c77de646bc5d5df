"""Machines, described in YAML (`configs/hardware/*.yaml`): every figure with its source, or marked as an assumption.

peak_tflops:
  fp16: {value: 256, source: "..."}
efficiency: {value: 0.45, assumption: true}
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.chips import CHIPS
from pangu_sigma.config.load import section_from_dict
from pangu_sigma.config.schema import key
from pangu_sigma.config.strict_yaml import parse_yaml, read_text, shown
from pangu_sigma.runtime.resources import resource

_DIVISORS = ("bandwidth_gb_s", "efficiency", "capacity_gb", "fp32", "fp16", "bf16")
_SHIPPED = "configs/hardware"


@dataclass(frozen=True)
class HardwareFigure:
    """A number and where it is from: `source`, or `assumption: true`, of which exactly one is given."""

    value: float = key(0.0, "the number, in the unit that its key names", minimum=0.0)
    source: Optional[str] = key(None, "document or measurement that says so")
    assumption: bool = key(False, "true: nobody published or measured it; printed as such")


@dataclass(frozen=True)
class Peak:
    """Rate of matmuls of each precision; null: the device has none."""

    fp32: Optional[HardwareFigure] = key(None, "TFLOP/s")
    fp16: Optional[HardwareFigure] = key(None, "TFLOP/s")
    bf16: Optional[HardwareFigure] = key(None, "TFLOP/s")

    def of(self, precision: str) -> Optional[HardwareFigure]:
        """The rate in `runtime.precision`."""
        figure: Optional[HardwareFigure] = getattr(self, precision)
        return figure


@dataclass(frozen=True)
class Link:
    """What joins ranks: to any number of peers at once, each rank (or node) sends at `bandwidth_gb_s` in all."""

    bandwidth_gb_s: HardwareFigure = key(HardwareFigure, "GB/s in one direction")
    latency_us: HardwareFigure = key(HardwareFigure, "microseconds of a message")


@dataclass(frozen=True)
class Island:
    """Ranks of a node with faster links among themselves: a 910A server has two such groups of four."""

    size: int = key(1, "ranks", minimum=1)
    link: Link = key(Link, "inside the island")


@dataclass(frozen=True)
class Memory:
    """Of one rank."""

    capacity_gb: HardwareFigure = key(HardwareFigure, "device memory, 1e9 bytes")
    reserved_gb: HardwareFigure = key(
        HardwareFigure, "used before the first tensor: runtime, compiled graphs, the process itself"
    )
    per_layer_mb: HardwareFigure = key(
        HardwareFigure, "used for each layer besides tensors: its part of compiled graphs"
    )
    per_group_mb: HardwareFigure = key(HardwareFigure, "buffers of each process group")
    activation_factor: HardwareFigure = key(
        HardwareFigure, "times what layers keep that is held: 1 where memory is used again as soon as it can be"
    )
    fragmentation: HardwareFigure = key(HardwareFigure, "share of tensors that the allocator loses, 0.05 for 5 %")


@dataclass(frozen=True)
class Compute:
    peak_tflops: Peak = key(Peak, "rate of matmuls by precision")
    efficiency: HardwareFigure = key(HardwareFigure, "share of it that the step's matmuls reach")
    bandwidth_gb_s: HardwareFigure = key(HardwareFigure, "memory bandwidth that elementwise operations reach")
    layer_ms: HardwareFigure = key(HardwareFigure, "milliseconds of a layer, forward and backward, whatever its size")
    launch_us: Optional[HardwareFigure] = key(
        None, "microseconds that the host takes to launch a kernel; null: part of the other figures"
    )
    shared_by: str = key(
        "rank",
        "what the figures are of: one rank (a device); a node or the machine that plays all nodes, whose ranks "
        "then share them",
        choices=("rank", "node", "machine"),
    )


@dataclass(frozen=True)
class Hardware:
    """A cluster's devices and links."""

    name: str = key("", "what it is called in tables")
    ranks_per_node: int = key(8, "ranks a node, where neither configuration nor command line says", minimum=1)
    compute: Compute = key(Compute, "rates")
    memory: Memory = key(Memory, "sizes")
    node: Link = key(Link, "between ranks of a node")
    network: Link = key(Link, "between nodes")
    network_per_node: bool = key(False, "ranks of a node share its link to the others; false: each has its own")
    island: Optional[Island] = key(None, "groups of a node's ranks with faster links; null: there are none")
    call_us: HardwareFigure = key(HardwareFigure, "microseconds of a collective besides its messages")
    overlap: HardwareFigure = key(
        HardwareFigure, "of communication that could be overlapped with computation, the share that is"
    )
    chip: Optional[str] = key(
        None, "Ascend chip whose rules hold (runtime.chip); null: it is none, or another", choices=tuple(CHIPS)
    )

    def peak_flops(self, precision: str) -> float:
        """FLOP/s of one device's matmuls. Raises InputError where the file has no figure for this precision."""
        figure = self.compute.peak_tflops.of(precision)
        if figure is None:
            raise InputError(
                f"runtime.precision is {precision}, for which hardware '{self.name}' gives no peak_tflops; expected "
                + " or ".join(name for name, given in vars(self.compute.peak_tflops).items() if given)
            )
        return figure.value * 1e12

    def sharing(self, topology: Topology) -> int:
        """Ranks that share what `compute` describes."""
        return {"rank": 1, "node": topology.ranks_per_node, "machine": topology.world_size}[self.compute.shared_by]

    def assumptions(self) -> list[tuple[str, float]]:
        """Key path and value of every figure that is an assumption."""
        return [(path, figure.value) for path, figure in _figures(self, "") if figure.assumption]


def load_hardware(name: str) -> Hardware:
    """Reads a YAML file, or the shipped one of that name.

    Raises:
        InputError: there is no such file, or it is not as this module declares.
    """
    path = Path(name)
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        folder = _folder()
        if folder is None:
            raise InputError(f"hardware {shown(name)}: found no folder {_SHIPPED}; expected the path of a YAML file")
        if name not in shipped_hardware():
            known = ", ".join(shipped_hardware())
            raise InputError(f"hardware {shown(name)}: expected one of {known}, or the path of a YAML file")
        path = folder / f"{name}.yaml"
    try:
        hardware: Hardware = section_from_dict(Hardware, parse_yaml(read_text(path), str(path)), "")
        check_figures(hardware, "")
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return hardware


def shipped_hardware() -> list[str]:
    """Names of the files in configs/hardware: of the working folder, else those that come with the program."""
    folder = _folder()
    return sorted(file.stem for file in folder.glob("*.yaml")) if folder else []


def _folder() -> Optional[Path]:
    return next((folder for folder in (Path(_SHIPPED), resource(_SHIPPED)) if folder.is_dir()), None)


def check_figures(section: Any, prefix: str) -> None:
    """Raises InputError where a figure of `section`, whose path begins with `prefix`, has no origin or two, or is 0
    where it divides.
    """
    for path, figure in _figures(section, prefix):
        if (figure.source is not None) == figure.assumption:
            found = "both source and" if figure.assumption else "neither source nor"
            raise InputError(f"{path}: found {found} assumption: true, expected one of them")
        if figure.value == 0.0 and path.endswith(_DIVISORS):
            raise InputError(f"{path}.value: found 0, expected a number above 0")


def _figures(section: Any, prefix: str) -> Iterator[tuple[str, HardwareFigure]]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, HardwareFigure):
            yield prefix + field.name, value
        elif dataclasses.is_dataclass(value):
            yield from _figures(value, f"{prefix}{field.name}.")
