"""Collectives between ranks: one interface, three backends.

`interface` is what models and training use; `local` (one process), `tcp` (CPU ranks over a `mesh`) and `hccl`
(MindSpore's own primitives) implement it. `mesh` alone works without MindSpore, on NumPy arrays.
"""

from locmoe_ops.collectives.interface import BytesSent, Collectives, CommunicationTimes, Flight, UnevenRows, create_collectives
from locmoe_ops.collectives.mesh import Mesh, MeshCounters, join_mesh

__all__ = ["BytesSent", "Collectives", "CommunicationTimes", "Flight", "Mesh", "MeshCounters", "UnevenRows", "create_collectives",
           "join_mesh"]
