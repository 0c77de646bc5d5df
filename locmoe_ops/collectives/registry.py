"""Every collective in one record: its gradient, its shapes, how each backend does it, and the bytes that it sends.

The mesh and both distributed backends read these records, and so do the planner and the audit, which need no MindSpore.
A new collective is a record here, its algorithm in `tcp.algorithms`, and a method of `interface.Collectives`.

Shape legend: P ranks of a group; n and `...` any sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from locmoe_ops.collectives.tcp import algorithms
from locmoe_ops.collectives.tcp.algorithms import Algorithm
from locmoe_ops.topology import Topology

PartBytes = Callable[[int, int, int], np.ndarray]


def _same_part(elements: int, item: int, size: int) -> np.ndarray:
    """An equal part of the input to each peer."""
    return np.full(size, elements * item // size)


def _whole(elements: int, item: int, size: int) -> np.ndarray:
    """The whole input to each peer."""
    return np.full(size, elements * item)


def _whole_of_root(elements: int, item: int, size: int) -> np.ndarray:
    """The whole input between the first rank, taken as the root, and each peer."""
    return np.array([elements * item] + [0] * (size - 1), np.int64)


def _summed_parts(elements: int, item: int, size: int) -> np.ndarray:
    """Small arrays whole to each peer; of larger ones each part to the rank that sums it, and back."""
    if algorithms.is_small(elements * item):
        return _whole(elements, item, size)
    return 2 * np.diff(np.array(algorithms.part_bounds(elements, size), np.int64)) * item


@dataclass(frozen=True)
class CollectiveSpec:
    """One collective.

    Attributes:
        name: of the methods of `Collectives` and `Mesh`, in errors, and in planned and audited exchanges.
        algorithm: how the mesh does it with messages between two ranks (backend tcp).
        adjoint: name of the collective that carries its gradient; None: it has none.
        primitive: name in `mindspore.ops` of the operator that does it (backend hccl); None: only the mesh has it.
        output_shape: of the input's shape and P; None: the caller says how many rows he has room for.
        part_bytes: of the input's numbers, bytes of each, and P: <int64>[P], bytes that cross each link for the sake of
            each place in the group, as `algorithm` sends them; None: it is made of other collectives.
        has_root: one rank is not like the others.
    """

    name: str
    algorithm: Callable[..., Algorithm]
    adjoint: str | None = None
    primitive: str | None = None
    output_shape: Callable[[Sequence[int], int], list[int]] | None = lambda shape, size: list(shape)
    part_bytes: PartBytes | None = _same_part
    has_root: bool = False


COLLECTIVES = {
    spec.name: spec
    for spec in (
        # (P, ...) -> (P, ...)
        CollectiveSpec("all_to_all", algorithms.all_to_all, "all_to_all", "AlltoAll"),
        # (M, ...) -> (limit, ...); bytes are those of an even spread
        CollectiveSpec("all_to_all_v", algorithms.all_to_all_v, "all_to_all_v", "AlltoAllVC", output_shape=None),
        # (n, ...) -> (P * n, ...)
        CollectiveSpec(
            "all_gather",
            algorithms.all_gather,
            "reduce_scatter",
            "AllGather",
            output_shape=lambda shape, size: [shape[0] * size, *shape[1:]],
            part_bytes=_whole,
        ),
        # (P * n, ...) -> (n, ...)
        CollectiveSpec(
            "reduce_scatter",
            algorithms.reduce_scatter,
            "all_gather",
            "ReduceScatter",
            output_shape=lambda shape, size: [shape[0] // size, *shape[1:]],
        ),
        # any shape
        CollectiveSpec("all_reduce", algorithms.all_reduce, "all_reduce", "AllReduce", part_bytes=_summed_parts),
        CollectiveSpec(
            "broadcast", algorithms.broadcast, "reduce", "Broadcast", part_bytes=_whole_of_root, has_root=True
        ),
        CollectiveSpec("reduce", algorithms.reduce, part_bytes=_whole_of_root, has_root=True),
        CollectiveSpec("barrier", algorithms.barrier),  # of no elements
        # (n,) -> (n,): reduce_scatter, all_reduce and all_gather
        CollectiveSpec("hierarchical_all_reduce", algorithms.hierarchical_all_reduce, part_bytes=None),
    )
}


def reduce_tiers(topology: Topology, group: str, rank: int) -> tuple[str, ...]:
    """Kinds of the groups in which a sum over a group is made step by step: inside nodes, then along rails over nodes.

    The group itself where it has one rank a node or lies on one node.

    Args:
        topology: the ranks of the job.
        group: kind of the group.
        rank: of whose group.
    """
    tiers = (f"{group}_node", f"{group}_rail")
    return tiers if all(len(topology.group_of(kind, rank)) > 1 for kind in tiers) else (group,)


GRADIENTS, LAYERS = "gradients", "layers"  # purposes of communicators


def purpose_of(group: str, cause: str) -> str:
    """What a communicator is for: sums over replicas of parameters, or all else.

    On Ascend MindSpore gives each communicator a stream, on which its exchanges queue (acl_stream_assign.cc, default
    `multi_stream:group`; read in the source, not run). Gradients are summed while layers are computed, hence not on
    the stream of the layers' own exchanges, where these would wait for them, also where the ranks are the same. What
    the update sums by itself needs no third one, as nothing else is under way then.

    Args:
        group: kind of the group.
        cause: how the tag begins, up to its first slash.
    """
    of_replicas = group.partition("_")[0] in ("dp", "edp")
    return GRADIENTS if of_replicas and cause in ("gradient", "checkpoint") else LAYERS


def link_bytes(operation: str, elements: int, item: int, size: int) -> np.ndarray:
    """<int64>[P]: bytes that one call of a collective sends over each link for the sake of each place in the group.

    Args:
        operation: name of the collective.
        elements: numbers that each rank puts in.
        item: bytes of a number.
        size: P, ranks of the group.
    """
    part_bytes = COLLECTIVES[operation].part_bytes
    assert part_bytes is not None, f"{operation} is made of other collectives: count those"
    return part_bytes(elements, item, size)
