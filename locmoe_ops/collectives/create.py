"""The collectives of a backend, by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology

if TYPE_CHECKING:
    from locmoe_ops.collectives.tcp.mesh import Mesh

BACKENDS = ("hccl", "tcp", "local")


def create_collectives(
    backend: str,
    topology: Topology,
    rank: int,
    mesh: Mesh | None = None,
    gathered: bool = False,
    eager: bool = False,
) -> Collectives:
    """The collectives of this rank.

    Args:
        backend: `hccl` (MindSpore's primitives or functions; `mindspore.communication.init` has been called), `tcp`
            (needs `mesh`) or `local` (one process).
        topology: the ranks of this job.
        rank: this rank.
        mesh: of `join_mesh`, for `tcp`.
        gathered: see `Collectives`.
        eager: of `hccl`, see `HcclCollectives`; the others' Cells serve both modes.

    Raises:
        InputError: unknown backend, or a topology that does not fit it.
    """
    if backend == "local":
        from locmoe_ops.collectives.local import LocalCollectives

        return LocalCollectives(rank, topology)
    if backend == "tcp":
        from locmoe_ops.collectives.tcp.backend import TcpCollectives

        if mesh is None:
            raise InputError("collectives: backend tcp needs a mesh (join_mesh), found none")
        return TcpCollectives(rank, topology, mesh, gathered)
    if backend == "hccl":
        from locmoe_ops.collectives.hccl import HcclCollectives

        return HcclCollectives(rank, topology, gathered=gathered, eager=eager)
    raise InputError(f"collectives: unknown backend {backend!r}, expected one of {', '.join(BACKENDS)}")
