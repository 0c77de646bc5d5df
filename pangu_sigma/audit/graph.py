"""Exported graphs, read back: what a rank exchanges, and what a compiled step must not hold."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from locmoe_ops.collectives.hccl import PHASE, TAG
from locmoe_ops.collectives.registry import COLLECTIVES
from pangu_sigma.audit.kernels import GraphOperator
from pangu_sigma.audit.products import ScopedNode, flops_again
from pangu_sigma.audit.status import GraphNode, status_faults

OPERATIONS = {spec.primitive: spec.name for spec in COLLECTIVES.values() if spec.primitive}
UPKEEP = ("Cast", "AssignAdd", "InplaceAddExt")  # of parameters
# These leave the device, or wait for the host. The counts of all_to_all_v do so too, by design: they are counted.
ON_THE_HOST = {"PyExecute", "PyFunc", "Custom", "Print", "Assert", "MoveTo"}
_TYPES = {1: ("float32", 4), 6: ("int32", 4), 7: ("int64", 8), 9: ("bool", 1), 10: ("float16", 2), 16: ("bfloat16", 2)}


@dataclass(frozen=True)
class Collective:
    """One collective of a rank's graph.

    Attributes:
        operation: as in `locmoe_ops.collectives`.
        group, members: its name and its ranks.
        shape, dtype, item: of the result (-1: known to the run only), and bytes of one number.
        tag, phase: of the Cell that it comes from; forward, or backward for the adjoint.
        where: Cell by Cell from the step down.
    """

    operation: str
    group: str
    members: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    item: int
    tag: str
    phase: str
    where: str

    @property
    def elements(self) -> int:
        """Numbers that the rank puts in; negative where only the run knows."""
        size = math.prod(self.shape) if min(self.shape, default=1) >= 0 else -1
        if self.operation == "all_gather":
            return size // len(self.members)
        return size * len(self.members) if self.operation == "reduce_scatter" else size

    @property
    def is_fixed(self) -> bool:
        return self.elements >= 0

    @property
    def counts_on_host(self) -> bool:
        """Whether the host reads its counts before each call, and hence waits for the device (MindSpore 2.10, kernels
        of AlltoAllV and AlltoAllVC).
        """
        return self.operation == "all_to_all_v"

    @property
    def cause(self) -> str:
        """One of `pangu_sigma.planner.exchanges.CAUSES`."""
        first = self.tag.partition("/")[0]
        return first if first in ("all_to_all", "gradient", "tensor") else "other"

    def __str__(self) -> str:
        numbers = " x ".join(map(str, self.shape)) or "one number"
        return f"{self.operation} '{self.tag}' ({self.phase}) of {numbers} {self.dtype} in {self.group}"


@dataclass(frozen=True)
class ExportedGraph:
    """One graph of the step on one rank.

    Attributes:
        name: the graph's.
        times: how often an optimizer step runs it.
        collectives: in the order in which the graph runs them.
        faults: what must not be in it, a line each.
        again: FLOPs of products that stand once more, since layers are recomputed.
        operators: all of it.
    """

    name: str
    times: int
    collectives: tuple[Collective, ...]
    faults: tuple[str, ...]
    again: float = 0.0
    operators: tuple[GraphOperator, ...] = ()

    @property
    def host_waits(self) -> int:
        """How often an optimizer step waits in this graph for the host to read counts."""
        return self.times * sum(found.counts_on_host for found in self.collectives)


@dataclass(frozen=True)
class RankGraphs:
    """All graphs of one rank, in the order in which a step runs them, and its process groups in the order in which it
    makes them.
    """

    rank: int
    graphs: tuple[ExportedGraph, ...]
    groups: dict[str, tuple[int, ...]]


class Wanted(NamedTuple):
    """What the graphs of a job hold by its configuration: `dynamic` and `status` of `read_rank`."""

    dynamic: bool
    status: bool


def read_rank(folder: Path, rank: int, dynamic: bool, status: bool = False) -> RankGraphs:
    """What `worker.export_rank` wrote.

    Args:
        folder: the one that it wrote into.
        rank: the one to read.
        dynamic: shapes that only the run knows are wanted (`moe.dispatch.type` ragged).
        status: the job asks its devices' status registers for overflows.
    """
    note = json.loads((folder / f"rank_{rank}.json").read_text())
    groups = {name: tuple(members) for name, members in note["groups"].items()}
    graphs = tuple(
        _read_graph(folder / f"{name}_{rank}.mindir", name, times, groups, Wanted(dynamic, status))
        for name, times in note["graphs"]
    )
    return RankGraphs(rank, graphs, groups)


def _read_graph(path: Path, name: str, times: int, groups: dict[str, tuple[int, ...]], wanted: Wanted) -> ExportedGraph:
    from mindspore.train import mind_ir_pb2

    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    attributes = {primitive.name: {a.name: a for a in primitive.attribute} for primitive in model.primitives}
    collectives, faults = [], []
    if model.functions:
        faults.append(f"{len(model.functions)} subgraphs, expected none: what they exchange would depend on values")
    nodes, scoped = [], []
    for node in model.graph.node:
        reference, operation = node.op_type.removeprefix("REF::"), _operation(node)
        nodes.append(GraphNode(operation, tuple(node.input), tuple(node.output)))
        where = _cell_of(node.domain)
        if operation in ON_THE_HOST:
            faults.append(f"{operation} in {where}, which leaves the device")
        shape, type_number = _output(node)
        scoped.append(ScopedNode(nodes[-1], node.domain, shape))
        if min(shape, default=0) < 0 and not wanted.dynamic:
            faults.append(f"{operation} in {where} has a shape that only the run knows")
        own = attributes.get(reference, {})
        if "group" in own:
            group = own["group"].s.decode()
            dtype, item = _TYPES[type_number]
            tag, phase = (own[key].s.decode() if key in own else "" for key in (TAG, PHASE))
            collectives.append(
                Collective(OPERATIONS[operation], group, groups[group], shape, dtype, item, tag, phase, where)
            )
    faults += status_faults(nodes, wanted.status)
    inputs = [(value.name, value.tensor[0].dims) for value in model.graph.input if value.tensor]
    given = {each: tuple(dims) for each, dims in [*inputs, *((p.name, p.dims) for p in model.graph.parameter)]}
    again = flops_again(scoped, given)
    return ExportedGraph(name, times, tuple(collectives), tuple(faults), again, _operators(model))


def _operators(model: Any) -> tuple[GraphOperator, ...]:
    """All operators of a `ModelProto`, in order."""
    parameters = {parameter.name for parameter in model.graph.parameter}
    for node in model.graph.node:
        if _operation(node) == "Load" and node.input[0] in parameters:
            parameters.update(node.output)
    return tuple(
        GraphOperator(name, _cell_of(node.domain), name in UPKEEP and node.input[0] in parameters)
        for name, node in ((_operation(node), node) for node in model.graph.node)
    )


def _operation(node: Any) -> str:
    """Name of a node's primitive: `A` of `REF::A:1`."""
    name: str = node.op_type.removeprefix("REF::")
    return name.partition(":")[0]


def _cell_of(domain: str) -> str:
    """`a/b` of `Default/a-A/b-B/Op-op1`, Cell b of Cell a; likewise of `Gradients/Default/a-A/b-B/Grad_Op/Op-op1`."""
    scopes = domain.removeprefix("Gradients/").split("/")[1:-1]
    return "/".join(scope.partition("-")[0] for scope in scopes if not scope.startswith("Grad_"))


def _output(node: Any) -> tuple[tuple[int, ...], int]:
    """Shape and data type of a node's result; of a tuple the first element's."""
    for attribute in node.attribute:
        if attribute.name == "shape":
            for tensor in (*attribute.tensors, *(found for each in attribute.values for found in each.tensors)):
                return tuple(tensor.dims), tensor.data_type
    return (), 0
