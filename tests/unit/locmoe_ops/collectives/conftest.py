"""Several ranks in one process, each on a thread of its own with its own mesh."""

import threading

import pytest

from helpers.ports import free_port as unused_port
from locmoe_ops.collectives.tcp.mesh import join_mesh


def _run_ranks(world_size, function, **options):
    """`function(mesh)` on every rank; a list of what each returned or raised."""
    results = [None] * world_size
    root = ("127.0.0.1", unused_port())
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
    return unused_port


@pytest.fixture
def run_ranks():
    return _run_ranks
