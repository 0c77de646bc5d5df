"""A process for each device that an Ascend rank table has on this machine, without msrun.

Each finds its place in RANK_TABLE_FILE, RANK_ID, RANK_SIZE and DEVICE_ID, as MindSpore expects them (mindspore.cn,
tutorials, "rank table startup").
"""

import os
import shlex
import subprocess
import time
from dataclasses import replace
from typing import Dict, List, Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.launcher.environment import PYTHON, absolute
from pangu_sigma.launcher.job import Failure, RankJob
from pangu_sigma.launcher.log_folder import LogFolder
from pangu_sigma.launcher.plan import (
    SECRET,
    LaunchPlan,
    check_secret,
    meeting_of,
    own_place,
    require_addresses,
)
from pangu_sigma.launcher.request import LaunchRequest, port_of
from pangu_sigma.runtime.nodes import Node, nodes_of_table

GRACE_S = 3.0  # a rank's failure leaves its peers this long to report theirs
_TABLE, _PORT = "RANK_TABLE_FILE", "LOCMOE_PORT"
_OF_MSRUN = ("ranks_per_node", "nodes", "node_rank", "node_addr", "nodes_file")


def make_plan(request: LaunchRequest) -> LaunchPlan:
    """The job of a request. Raises InputError: something of it is wrong, or does not fit together."""
    placement = request.placement
    _check_options(request)
    port_text = request.port or os.environ.get(_PORT)
    port = port_of(port_text) if port_text else None
    path = table_of(request)
    try:
        nodes = tuple(nodes_of_table(_named_table(request)))
    except InputError as error:
        from_shell = f"; the table is {_TABLE}'s; expected --rank-table, or {_TABLE} to name one"
        raise InputError(f"--rank-table: {error}{'' if placement.rank_table else from_shell}") from None
    ranks = len(nodes[0].ranks)
    # One server's ranks meet on loopback, whatever its own address.
    addresses = ["127.0.0.1"] if len(nodes) == 1 else [node.address for node in nodes]
    place = None if request.ssh else _place(nodes, placement.server, path)
    command, config = request.command, request.command.read_config(ranks * len(nodes))
    # A server is a node to the routers and byte counters, unless the configuration says that a group of its devices is.
    if config.parallel.ranks_per_node is None:
        command = replace(command, overrides=(*command.overrides, f"parallel.ranks_per_node={ranks}"))
    on_cpu = config.runtime.device == "cpu"
    master = placement.master_addr or addresses[0]
    if on_cpu:
        _check_meeting(request, nodes, place, master, port)
    elif place is not None and not request.dry_run:
        _check_devices(nodes[place])
    own = addresses[place] if place is not None else None
    meeting = meeting_of(master or "", own or "", port, len(nodes) > 1)
    return LaunchPlan(command, config, nodes, len(nodes), ranks, place, meeting, on_cpu)


def table_of(request: LaunchRequest) -> str:
    """Where the rank table is: the ranks read it by this name whatever their working directory.

    Raises InputError: none is named.
    """
    return absolute(_named_table(request))


def options_of_node(request: LaunchRequest, plan: LaunchPlan, place: int) -> List[str]:
    """What the launcher of one server is told.

    Args:
        request, plan: of the job.
        place: of the server.
    """
    words = ["--rank-table", table_of(request), "--server", plan.nodes[place].name]
    if plan.on_cpu:
        words += ["--port", str(plan.meeting.port), "--master-addr", plan.meeting.master_addr]
    return words


class RankTableJob(RankJob):
    """Ranks of this server, one process each.

    Args:
        plan, logs, stop_timeout: as of `RankJob`.
        table: path of the rank table.
    """

    def __init__(self, plan: LaunchPlan, logs: LogFolder, stop_timeout: int, table: str) -> None:
        super().__init__(plan, logs, stop_timeout)
        self._table = table
        self._running: Dict[int, subprocess.Popen[bytes]] = {}
        self._first_exit: Optional[Failure] = None
        self._kill_at: Optional[float] = None

    def settings(self) -> Dict[str, str]:
        found = {"RANK_TABLE_FILE": self._table, "RANK_SIZE": str(self.plan.total_ranks)}
        found["LOCMOE_LOG_DIR"] = str(self.logs.path)
        if self.plan.on_cpu:
            meeting = self.plan.meeting
            found.update(LOCMOE_MASTER_ADDRESS=meeting.master_addr, LOCMOE_NODE_ADDRESS=meeting.node_addr)
            found["LOCMOE_MESH_PORT"] = str(meeting.port)
        return found

    def shown_commands(self) -> List[str]:
        lines = [f"{name}={shlex.quote(value)} \\" for name, value in self.settings().items()]
        if self.plan.on_cpu:
            lines.append(f"{SECRET}=<{'given' if self.plan.meeting.is_given else 'random'}> \\")
        words = shlex.join([PYTHON, *self.plan.command.words()])
        for rank, device in self._devices():
            lines.append(f"RANK_ID={rank} DEVICE_ID={device} {words} >{shlex.quote(str(self.logs.log_of(rank)))}")
        return lines

    def start(self, environment: Dict[str, str]) -> None:
        for rank, device in self._devices():
            own = {**environment, "RANK_ID": str(rank), "DEVICE_ID": str(device)}
            self._running[rank] = self.spawn([PYTHON, *self.plan.command.words()], own, self.logs.log_of(rank))

    def poll(self) -> Optional[int]:
        """Ranks that do not end by themselves, a moment after the first failure, are made to."""
        for rank, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[rank]
            if code != 0 and self._first_exit is None:
                self._first_exit, self._kill_at = (str(rank), code), time.monotonic() + GRACE_S
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self.kill_children()
        return None if self._running else int(self._first_exit is not None)

    def first_exit(self) -> Optional[Failure]:
        return self._first_exit

    def _devices(self) -> Tuple[Tuple[int, int], ...]:
        assert self.plan.place is not None
        return self.plan.nodes[self.plan.place].ranks


def _check_options(request: LaunchRequest) -> None:
    for name in _OF_MSRUN:
        if getattr(request.placement, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: given with a rank table, which says where the ranks are")
    if request.bind_core is not None:
        raise InputError("--bind-core: given with a rank table; expected it without, since it is msrun that binds")
    if request.ssh and request.placement.server is not None:
        raise InputError("--server: given with --ssh, which starts all servers")


def _named_table(request: LaunchRequest) -> str:
    path = request.placement.rank_table or os.environ.get(_TABLE)
    if not path:
        raise InputError(f"--rank-table: not given, nor {_TABLE} set; expected an Ascend rank table")
    return path


def _place(nodes: Tuple[Node, ...], server: Optional[str], path: str) -> int:
    """The server that this machine is: the one named, the only one, or the one that has its address."""
    if server is not None:
        names = [node.name for node in nodes]
        if server not in names:
            raise InputError(f"--server: found '{server}', expected a server_id of {path} ({','.join(names)})")
        return names.index(server)
    place = 0 if len(nodes) == 1 else own_place(nodes, "--server")
    if place is None:
        raise InputError(f"--server: not given; expected it, since no server of {path} has an address of this machine")
    return place


def _check_devices(node: Node) -> None:
    """Ranks run on CPU only if told to, lest a cluster whose driver is not loaded trains at a snail's pace."""
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if visible:
        raise InputError(
            f"environment variable ASCEND_RT_VISIBLE_DEVICES: found '{visible}', expected it unset: the rank table "
            "names devices by their physical number"
        )
    for rank, device in node.ranks:
        if not os.path.exists(f"/dev/davinci{device}"):
            raise InputError(
                f"rank {rank}: found no /dev/davinci{device}; expected an Ascend device with its driver loaded, or "
                "--set runtime.device=cpu"
            )


def _check_meeting(
    request: LaunchRequest, nodes: Tuple[Node, ...], place: Optional[int], master: Optional[str], port: Optional[int]
) -> None:
    """What ranks on CPU need to find each other."""
    if master is None:
        raise InputError("--master-addr: not given; expected it, since the name of rank 0's server does not resolve")
    if request.ssh:
        if os.environ.get(SECRET):
            check_secret("--ssh")
        require_addresses(nodes[1:] and nodes)
    elif len(nodes) > 1:
        if port is None:
            raise InputError(f"--port: not given; with {len(nodes)} servers expected the same port on every server")
        check_secret(f"{len(nodes)} servers")
        if place is not None and nodes[place].address is None:
            raise InputError(
                f"server {nodes[place].name}: the name does not resolve; expected host_ip in the rank table"
            )
