"""How the ranks of a job on CPU come together: without MindSpore, so that a launcher can be tried without it."""

import os
from typing import Optional

from locmoe_ops.collectives.tcp.mesh import Mesh, join_mesh
from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.launch import why_a_rank
from pangu_sigma.runtime.reporting import announce, leave_now


def join_ranks(config: Config, rank: int, world_size: int) -> Mesh:
    """Joins the other ranks, where and with what secret the launcher says.

    Args:
        config: with the deadlines, `runtime.join_timeout` and `runtime.collective_timeout`.
        rank, world_size: of this process.

    Raises:
        InputError: the launcher's environment is incomplete, or the meeting port is taken.
        CollectiveError: a rank did not join in time.
    """
    root = os.environ.get("MS_SCHED_HOST") or _from_launcher("LOCMOE_MASTER_ADDRESS")
    mesh = join_mesh(
        rank,
        world_size,
        (root, int(_from_launcher("LOCMOE_MESH_PORT"))),
        bytes.fromhex(_from_launcher("LOCMOE_MESH_SECRET")),
        bind=os.environ.get("LOCMOE_NODE_ADDRESS", root),
        join_timeout=config.runtime.join_timeout,
        collective_timeout=config.runtime.collective_timeout,
        parent_pid=os.getppid(),
    )
    mesh.on_failure = announce
    mesh.on_unnoticed = leave_now  # the main thread is deep in compiled code, or waits for something else
    return mesh


def _from_launcher(name: str) -> str:
    value: Optional[str] = os.environ.get(name)
    if not value:
        raise InputError(
            f"environment variable {name} is not set; expected it from pangu-sigma launch, which "
            f"starts ranks on CPU{why_a_rank()}"
        )
    return value
