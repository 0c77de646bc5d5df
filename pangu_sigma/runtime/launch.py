"""What the launcher told this process through its environment: which rank it is, of how many, on which device.

Two ways: msrun sets MS_ROLE, MS_WORKER_NUM and RANK_ID; `pangu-sigma launch --rank-table` starts a process a device of
a rank table and sets RANK_TABLE_FILE, RANK_ID, RANK_SIZE and DEVICE_ID, as MindSpore expects them without msrun
(mindspore.cn, tutorials, "rank table startup"). Under msrun RANK_TABLE_FILE may be set too: it then says where the
nodes are.
"""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import whole_number
from pangu_sigma.config.schema import Config

if TYPE_CHECKING:
    from locmoe_ops.rank_table import RankTable

# What a launcher tells each rank. Left over in a shell, it would make other processes take themselves for ranks of that
# job.
RANK_VARIABLES = (
    "MS_ROLE",
    "MS_WORKER_NUM",
    "MS_NODE_ID",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "RANK_ID",
    "RANK_SIZE",
    "DEVICE_ID",
    "LOCMOE_JOB",
    "LOCMOE_LOG_DIR",
    "LOCMOE_MESH_PORT",
)
# What a user may tell a launcher about the machines of a job.
CLUSTER_VARIABLES = (
    "RANK_TABLE_FILE",
    "LOCMOE_NODES",
    "LOCMOE_NODE_RANK",
    "LOCMOE_RANKS_PER_NODE",
    "LOCMOE_WORKERS_PER_NODE",  # what it was called
    "LOCMOE_MASTER_ADDRESS",
    "LOCMOE_NODE_ADDRESS",
    "LOCMOE_PORT",
    "LOCMOE_MESH_SECRET",
)
WORKER, SCHEDULER = "MS_WORKER", "MS_SCHED"


@dataclass(frozen=True)
class Launch:
    """This process's place in the job; alone without a launcher.

    Attributes:
        rank, world_size: which one of how many.
        device: number to give to MindSpore; None: left to it.
        table: the rank table that names the nodes, if there is one.
    """

    rank: int = 0
    world_size: int = 1
    device: Optional[int] = None
    table: "Optional[RankTable]" = None

    def fit(self, config: Config) -> Config:
        """The configuration with `parallel.ranks_per_node` as the rank table has it, if there is one.

        Raises:
            InputError: the key is set to a number of ranks that is no node of the table.
        """
        if self.table is None:
            return config
        ranks_per_node = self.table.node_size(config.parallel.ranks_per_node)
        return replace(config, parallel=replace(config.parallel, ranks_per_node=ranks_per_node))


def is_worker() -> bool:
    """True if this process is a rank that a launcher started."""
    return os.environ.get("MS_ROLE") == WORKER or _by_rank_table()


def is_scheduler() -> bool:
    """True if this process is the one that msrun starts besides the ranks."""
    return os.environ.get("MS_ROLE") == SCHEDULER


def started_by_launcher() -> bool:
    """True if `pangu-sigma launch` started this process; msrun alone, or a shell with variables of another
    job, sets less.
    """
    return "LOCMOE_JOB" in os.environ


def why_a_rank() -> str:
    """What to add to an error where variables that are left over in the shell may be its cause; nothing where a
    launcher set them.
    """
    if started_by_launcher() or not (is_worker() or is_scheduler()):
        return ""
    if _by_rank_table():
        return (
            "; RANK_TABLE_FILE and RANK_ID in the environment make this process a rank of a job: if no launcher "
            "started it, unset RANK_TABLE_FILE RANK_ID"
        )
    return (
        f"; MS_ROLE={os.environ['MS_ROLE']} in the environment makes this process part of a job: if msrun did not "
        "start it, unset MS_ROLE"
    )


def check_launch(command: str, by_ranks: bool) -> None:
    """Refuses an environment that no launcher makes, and removes what is left over of one where this process runs
    alone.

    DEVICE_ID stays, by which a process that runs alone may be given a device.

    Args:
        command: the command's name, for messages.
        by_ranks: whether the command can run as a rank of a job.

    Raises:
        InputError: MS_ROLE has a value that msrun does not set, comes without what msrun sets with it, or the command
            runs alone.
    """
    role = os.environ.get("MS_ROLE")
    if not role:
        if not is_worker():
            for name in RANK_VARIABLES:
                if name != "DEVICE_ID":
                    os.environ.pop(name, None)
        return
    if role not in (WORKER, SCHEDULER):
        raise InputError(
            f"environment variable MS_ROLE: found '{role}', expected {WORKER} or {SCHEDULER}, as msrun sets it, or "
            "none (unset MS_ROLE)"
        )
    if not by_ranks:
        raise InputError(
            f"{command} runs as one process, but the environment variable MS_ROLE is set ({role}); expected to run "
            "without msrun, or, if something left it over, unset MS_ROLE"
        )
    if role == SCHEDULER and not started_by_launcher() and "MS_SCHED_HOST" not in os.environ:
        raise InputError(
            "environment variable MS_ROLE: found MS_SCHED without MS_SCHED_HOST, which msrun sets with it; expected "
            "both, or none (unset MS_ROLE)"
        )


def rank_name() -> str:
    """This process's rank as the launcher spelled it; 0 without one."""
    return os.environ.get("RANK_ID", "0")


def read_launch() -> Launch:
    """This process's place, from the environment and the rank table that it names.

    Raises:
        InputError: a variable or the table is missing or malformed, or they contradict each other.
    """
    if not is_worker():
        return Launch()
    rank, table = _number("RANK_ID"), _table()
    if not _by_rank_table():
        world_size = _number("MS_WORKER_NUM")
        if table is not None and table.world_size != world_size:
            raise InputError(
                f"RANK_TABLE_FILE: {os.environ['RANK_TABLE_FILE']} has {table.world_size} ranks, but msrun was told of "
                f"{world_size} (MS_WORKER_NUM); expected as many, or RANK_TABLE_FILE unset"
            )
        return Launch(rank, world_size, None, table)
    assert table is not None
    if rank >= table.world_size:
        raise InputError(
            f"environment variable RANK_ID: found {rank}, expected a rank of {os.environ['RANK_TABLE_FILE']}, "
            f"0 to {table.world_size - 1}"
        )
    device = table.devices[rank].number
    for name, expected in (("RANK_SIZE", table.world_size), ("DEVICE_ID", device)):
        if name in os.environ and _number(name) != expected:
            raise InputError(
                f"environment variable {name}: found {os.environ[name]}, expected {expected}, as "
                f"{os.environ['RANK_TABLE_FILE']} has it for rank {rank}"
            )
    return Launch(rank, table.world_size, device, table)


def check_ranks(launch: Launch, rank: int, world_size: int) -> None:
    """Checks that MindSpore's own cluster is the launcher's: groups are made of ranks as `launch` counts them, and any
    other order would send tokens to the wrong experts without an error.

    Args:
        launch: what the launcher said.
        rank, world_size: what `get_rank` and `get_group_size` say once MindSpore is initialised.

    Raises:
        InputError: they differ.
    """
    if (rank, world_size) != (launch.rank, launch.world_size):
        raise InputError(
            f"MindSpore takes this process for rank {rank} of {world_size} (get_rank, get_group_size), the launcher "
            f"started it as rank {launch.rank} of {launch.world_size}; expected the same: unset RANK_ID, RANK_SIZE, "
            "MS_WORKER_NUM and RANK_TABLE_FILE where another job has left them, or give every node the same table"
        )


def _by_rank_table() -> bool:
    return not os.environ.get("MS_ROLE") and bool(os.environ.get("RANK_TABLE_FILE")) and "RANK_ID" in os.environ


def _table() -> "Optional[RankTable]":
    path = os.environ.get("RANK_TABLE_FILE")
    if not path:
        return None
    from locmoe_ops.rank_table import read_rank_table

    try:
        return read_rank_table(path)
    except InputError as error:
        raise InputError(
            f"environment variable RANK_TABLE_FILE: {error}; if it is left over, unset RANK_TABLE_FILE"
        ) from None


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    number = whole_number(text)
    if number is None:
        raise InputError(f"environment variable {name}: found '{text[:60]}', expected a number from 0")
    return number
