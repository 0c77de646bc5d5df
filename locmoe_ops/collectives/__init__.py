"""Collectives between ranks: one interface, three backends.

`interface` is what models and training use; `local` (one process), `tcp` (CPU ranks over a mesh) and `hccl`
(MindSpore's own primitives) implement it, and `create` chooses one. `registry` says in one record what each collective
is: gradient, shapes, algorithm, primitive and bytes. `registry` and `tcp.mesh` need no MindSpore.
"""
