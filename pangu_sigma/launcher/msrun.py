"""Ranks that msrun starts, on this machine as one of the nodes that the command line or a nodes file names."""

import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.ascend import has_devices
from pangu_sigma.launcher.environment import PYTHON
from pangu_sigma.launcher.job import Failure, RankJob
from pangu_sigma.launcher.log_folder import MSRUN_LOG, LogFolder
from pangu_sigma.launcher.plan import (
    SECRET,
    LaunchPlan,
    check_secret,
    left_over,
    meeting_of,
    own_place,
    require_addresses,
    with_hint,
)
from pangu_sigma.launcher.request import LaunchRequest, number_of, port_of
from pangu_sigma.runtime.nodes import Node, read_nodes

# Defaults may come from these: option, variable, default.
_VARIABLES = {
    "nodes": ("LOCMOE_NODES", "1"),
    "node_rank": ("LOCMOE_NODE_RANK", "0"),
    "ranks_per_node": ("LOCMOE_RANKS_PER_NODE", "4"),
    "master_addr": ("LOCMOE_MASTER_ADDRESS", "127.0.0.1"),
    "node_addr": ("LOCMOE_NODE_ADDRESS", "127.0.0.1"),
}
_PORT = "LOCMOE_PORT"
_OLD_VARIABLE = "LOCMOE_WORKERS_PER_NODE"
_PLACING = ("nodes", "node_rank", "master_addr", "node_addr")  # options that a nodes file takes the place of
_EXIT = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
_CORES = re.compile(r"\d+-\d+|\d+(,\d+)*")
_BOUND = re.compile(r"device\d+|scheduler")
_EXAMPLE = '{"device0": ["0-23"], "device1": ["24-47"]}'


def make_plan(request: LaunchRequest) -> LaunchPlan:
    """The job of a request. Raises InputError: something of it is wrong, or does not fit together."""
    placement = request.placement
    _check_options(request)
    found = {name: os.environ.get(variable) or default for name, (variable, default) in _VARIABLES.items()}
    named = {name: getattr(placement, name) for name in _VARIABLES}
    given = {**found, **{name: text for name, text in named.items() if text is not None}}
    ranks = number_of("--ranks-per-node", given["ranks_per_node"], 1, 9999)
    port_text = request.port or os.environ.get(_PORT)
    port = port_of(port_text) if port_text else None
    _check_bind_core(request, ranks)
    nodes = () if placement.nodes_file is None else _nodes_of_file(request, placement.nodes_file, given)
    hint = _note_environment()
    with_hint(hint, lambda: _check_nodes(request, given, nodes, port))
    count, place = int(given["nodes"]), int(given["node_rank"])
    command, config = request.command, request.command.read_config(count * ranks)
    if count > 1:  # several machines are as many nodes to the routers and byte counters too
        per_node = config.parallel.ranks_per_node
        if per_node not in (None, ranks):
            raise InputError(
                f"parallel.ranks_per_node: found {per_node}, expected {ranks} (--ranks-per-node) or null, with --nodes "
                f"{count}"
            )
        if per_node is None:
            command = replace(command, overrides=(*command.overrides, f"parallel.ranks_per_node={ranks}"))
    meeting = meeting_of(given["master_addr"], given["node_addr"], port, count > 1)
    own = None if request.ssh else place
    return LaunchPlan(command, config, nodes, count, ranks, own, meeting, on_cpu=False)


def options_of_node(request: LaunchRequest, plan: LaunchPlan, place: int) -> List[str]:
    """What the launcher of one node is told: everything that it could not find out alone.

    Args:
        request, plan: of the job.
        place: of the node.
    """
    words = ["--ranks-per-node", str(plan.ranks_per_node), "--nodes", str(plan.node_count), "--node-rank", str(place)]
    words += ["--master-addr", plan.meeting.master_addr, "--node-addr", str(plan.nodes[place].address)]
    words += ["--port", str(plan.meeting.port)]
    return words + (["--bind-core", request.bind_core] if request.bind_core else [])


class MsrunJob(RankJob):
    """Ranks of this machine, which msrun starts with a process of its own besides them on node 0.

    Args:
        plan, logs, stop_timeout: as of `RankJob`.
        bind_core: as of `LaunchRequest`.
    """

    def __init__(self, plan: LaunchPlan, logs: LogFolder, stop_timeout: int, bind_core: Optional[str]) -> None:
        super().__init__(plan, logs, stop_timeout)
        self._bind_core = bind_core

    def settings(self) -> Dict[str, str]:
        meeting = self.plan.meeting
        return {
            "LOCMOE_NODE_ADDRESS": meeting.node_addr,
            "LOCMOE_LOG_DIR": str(self.logs.path),
            "LOCMOE_MESH_PORT": str(meeting.port),
        }

    def command(self) -> List[str]:
        """msrun's command line."""
        plan = self.plan
        words = ["msrun", f"--worker_num={plan.total_ranks}", f"--local_worker_num={plan.ranks_per_node}"]
        words += [f"--master_addr={plan.meeting.master_addr}", f"--master_port={plan.meeting.port}"]
        words += [f"--node_rank={plan.place}", "--join=True", f"--log_dir={self.logs.path}"]
        words.append(f"--tail_worker_log={plan.total_ranks}")  # a rank that there is not: it is to show the log of none
        if self._bind_core:
            words.append(f"--bind_core={'True' if self._bind_core == 'auto' else self._bind_core}")
        return [*words, PYTHON, *plan.command.words()]

    def shown_commands(self) -> List[str]:
        lines = [f"{name}={shlex.quote(value)} \\" for name, value in self.settings().items()]
        lines.append(f"{SECRET}=<{'given' if self.plan.meeting.is_given else 'random'}> \\")
        return [*lines, shlex.join(self.command())]

    def start(self, environment: Dict[str, str]) -> None:
        self._msrun = self.spawn(self.command(), environment, self.logs.path / MSRUN_LOG)

    def poll(self) -> Optional[int]:
        return self._msrun.poll()

    def first_exit(self) -> Optional[Failure]:
        """As msrun tells of it in its own log."""
        text = (self.logs.path / MSRUN_LOG).read_text(encoding="utf-8", errors="replace")
        found = _EXIT.search(text)
        if found is None:
            return None
        ranks = [str(rank) for rank, process in self.logs.processes().items() if process == int(found[1])]
        return (ranks[0] if ranks else "?"), int(found[2])


def require_msrun(path: str) -> None:
    """Raises InputError: msrun is not in the folders of `path`."""
    if shutil.which("msrun", path=path) is None:
        raise InputError("msrun not found; expected the environment that MindSpore is installed in to be active")


def _check_options(request: LaunchRequest) -> None:
    placement = request.placement
    if placement.server is not None:
        raise InputError("--server: given without --rank-table, of which it names a server")
    if os.environ.get(_OLD_VARIABLE):
        raise InputError(
            f"environment variable {_OLD_VARIABLE} is called {_VARIABLES['ranks_per_node'][0]} now; expected that"
        )
    if placement.nodes_file is None:
        if request.ssh:
            raise InputError("--ssh: given without --nodes-file; expected a file that names the nodes")
        return
    for name in _PLACING:
        if getattr(placement, name) is not None and (request.ssh or name != "node_rank"):
            also = " and --ssh" if request.ssh else ""
            raise InputError(f"--{name.replace('_', '-')}: given with --nodes-file{also}, which says it")


def _nodes_of_file(request: LaunchRequest, path: str, given: Dict[str, str]) -> Tuple[Node, ...]:
    """The nodes of the file; puts what follows from them into `given`: their number, the address of the first one, and
    which of them this machine is.
    """
    try:
        nodes = tuple(read_nodes(path))
    except InputError as error:
        raise InputError(f"--nodes-file: {error}") from None
    require_addresses(nodes)
    given.update(nodes=str(len(nodes)), master_addr=str(nodes[0].address))
    if request.ssh:
        given["node_rank"] = "0"
    elif request.placement.node_rank is None:
        place = own_place(nodes, "--node-rank")
        if place is None:
            raise InputError(
                f"--nodes-file: none of the nodes in {path} is this machine; expected one, or --node-rank, or --ssh"
            )
        given["node_rank"] = str(place)
    return nodes


def _note_environment() -> str:
    """Where the environment does not place this machine in a job as a whole, as simulate_cluster.sh does, a part may be
    left over: it is shown, and returned as a hint for errors.
    """
    table = os.environ.get("RANK_TABLE_FILE")
    if table and not os.access(table, os.R_OK):
        raise InputError(
            f"environment variable RANK_TABLE_FILE: cannot read '{table}'; expected an Ascend rank table, which says "
            "where the nodes are, or none (unset RANK_TABLE_FILE)"
        )
    variables = [*(variable for variable, _ in _VARIABLES.values()), _PORT]
    hint = "" if all(os.environ.get(name) for name in variables) else left_over(variables)
    if hint:
        print(hint, flush=True)
    return hint


def _check_nodes(request: LaunchRequest, given: Dict[str, str], nodes: Tuple[Node, ...], port: Optional[int]) -> None:
    """Checks this machine's place, and puts its address into `given` where a file says it."""
    count = number_of("--nodes", given["nodes"], 1, 9999)
    place = number_of("--node-rank", given["node_rank"], 0, count - 1)
    if nodes:
        given["node_addr"] = str(nodes[place].address)
    if count > 1:
        _check_cluster(request, given, port)
    if place == 0 and given["node_addr"] != given["master_addr"]:
        raise InputError(
            f"--node-addr: found '{given['node_addr']}' on node 0, expected --master-addr ({given['master_addr']})"
        )


def _check_cluster(request: LaunchRequest, given: Dict[str, str], port: Optional[int]) -> None:
    """What all nodes must agree on cannot be drawn here, and loopback reaches no other machine."""
    count = given["nodes"]
    if not request.ssh and port is None:
        raise InputError(f"--port: not given; with --nodes {count} expected the same port on every node")
    if not request.ssh or os.environ.get(SECRET):
        check_secret(f"--nodes {count}")
    for option, name, whose in (
        ("--master-addr", "master_addr", "node 0's address"),
        ("--node-addr", "node_addr", "this machine's address"),
    ):
        if given[name].startswith("127.") or given[name] == "localhost":
            raise InputError(f"{option}: found '{given[name]}', expected {whose} as the other nodes reach it")


def _check_bind_core(request: LaunchRequest, ranks: int) -> None:
    """msrun would only warn, in its own log, of what it cannot bind. On CPU a rank has threads of its own already."""
    cores = request.bind_core
    if cores is None:
        return
    bound = _bound_cores(cores)
    if cores != "auto" and bound is None:
        raise InputError(
            f"--bind-core: found '{cores}', expected auto, or a JSON object of cores by device, as in {_EXAMPLE}"
        )
    if bound is not None and sum(name != "scheduler" for name in bound) != ranks:
        raise InputError(
            f"--bind-core: found '{cores}', expected cores for as many devices as --ranks-per-node has ranks ({ranks})"
        )
    if request.dry_run or request.ssh:  # the devices are elsewhere
        return
    if not has_devices():
        raise InputError("--bind-core: found no /dev/davinci0, expected an Ascend device with its driver loaded")
    if shutil.which("taskset") is None:
        raise InputError(
            "--bind-core: taskset not found, which msrun binds with; expected it in PATH (package util-linux)"
        )


def _bound_cores(text: str) -> Optional[Dict[str, Any]]:
    """Lists of cores by device; None: the text is nothing that msrun takes."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or not found or not all(map(_BOUND.fullmatch, found)):
        return None
    well = all(
        isinstance(cores, list) and cores and all(isinstance(one, str) and _CORES.fullmatch(one) for one in cores)
        for cores in found.values()
    )
    return found if well else None
