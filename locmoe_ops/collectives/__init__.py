"""Collectives between ranks: one interface, three backends.

`interface` is what models and training use; `local` (one process), `tcp` (CPU ranks over a `mesh`) and `hccl`
(MindSpore's own primitives) implement it. `mesh` alone works without MindSpore, on NumPy arrays.
"""
