"""One rank of a job that only exchanges arrays; what it does is named by its first argument.

Prints `ready` when joined. Ends like the command line does: one line on stderr, status 2 for bad input, else 1.
"""

import os
import sys
import time

import numpy as np

from locmoe_ops.collectives.tcp.mesh import join_mesh
from locmoe_ops.errors import CollectiveError, InputError


def work(mesh, steps=10**9):
    """Exchanges until somebody fails."""
    array = np.zeros((mesh.world_size, 50_000), np.float32)
    for _ in range(steps):
        mesh.all_to_all(range(mesh.world_size), "work", array, "world")


def skip(mesh):
    """Rank 1 forgets the second collective."""
    mesh.barrier(range(mesh.world_size), "first", "world")
    if mesh.rank != 1:
        mesh.barrier(range(mesh.world_size), "second", "world")
    mesh.barrier(range(mesh.world_size), "third", "world")


def busy(mesh):
    """Rank 1 never looks at the mesh again, as if it were inside a long computation."""
    mesh.barrier(range(mesh.world_size), "first", "world")
    print("begun", flush=True)
    if mesh.rank == 1:
        time.sleep(600)
    work(mesh)


def crash(mesh):
    """Rank 1 ends without a word."""
    work(mesh, steps=20)
    if mesh.rank == 1:
        os._exit(7)
    work(mesh)


def brief(mesh):
    work(mesh, steps=3)


JOBS = {"work": work, "skip": skip, "busy": busy, "crash": crash, "brief": brief}


def give_up(error):
    sys.stderr.write(f"error: {error}\n")
    sys.stderr.flush()
    os._exit(1)


def main():
    job, rank, world_size, port, join_timeout, collective_timeout, parent = sys.argv[1:]
    secret = os.environ["MESH_SECRET"].encode()
    mesh = join_mesh(
        int(rank),
        int(world_size),
        ("127.0.0.1", int(port)),
        secret,
        join_timeout=float(join_timeout),
        collective_timeout=float(collective_timeout),
        parent_pid=int(parent) or None,
    )
    if job == "busy":
        mesh.on_unnoticed = give_up
    print("ready", flush=True)
    try:
        JOBS[job](mesh)
    finally:
        mesh.close()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except CollectiveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
