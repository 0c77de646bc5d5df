"""Several ranks in one process, each on a thread of its own with its own mesh."""

import socket
import threading

import pytest

from locmoe_ops.collectives.tcp.mesh import join_mesh


def _free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _run_ranks(world_size, function, **options):
    """`function(mesh)` on every rank; a list of what each returned or raised."""
    results = [None] * world_size
    root = ("127.0.0.1", _free_port())
    settings = {"join_timeout": 20.0, "collective_timeout": 20.0, **options}

    def rank_main(rank):
        mesh = None
        try:
            mesh = join_mesh(rank, world_size, root, b"secret", **settings)
            results[rank] = function(mesh)
        except Exception as error:
            results[rank] = error
        finally:
            if mesh is not None:
                mesh.close()

    threads = [threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


@pytest.fixture
def free_port():
    return _free_port


@pytest.fixture
def run_ranks():
    return _run_ranks
