"""Collectives between processes on CPU: a full mesh of TCP connections, and MindSpore Cells over it.

`rendezvous`, `acceptor`, `launcher` bring the ranks together; `link`, `wire` carry frames; `engine` moves bytes in a
thread of its own; `operation`, `algorithms` are one run of a collective; `mesh` is what a rank calls, on NumPy arrays;
`backend` makes Cells of it. Only `backend` needs MindSpore.
"""
