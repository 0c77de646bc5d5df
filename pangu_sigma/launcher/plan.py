"""What a launch comes to once everything is known: the nodes, this one's place among them, where the ranks meet."""

import os
import random
import re
import secrets
import socket
from dataclasses import dataclass
from typing import Callable, Optional, Sequence, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.launcher.request import ALL_TO_ALL, SELF_TEST, RankCommand
from pangu_sigma.runtime.nodes import Node

SECRET = "LOCMOE_MESH_SECRET"
_PORTS = range(
    20000, 32000
)  # below those that the system hands out by itself, which a rank's own connection could take


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a job meet.

    Attributes:
        master_addr: node 0's address.
        node_addr: this node's own, on which its ranks listen; empty where the job is started on other nodes.
        port: of both.
        secret: that ranks on CPU prove to each other.
        is_given: whether the user gave the secret, as he must where several launchers share it.
    """

    master_addr: str
    node_addr: str
    port: int
    secret: str
    is_given: bool


@dataclass(frozen=True)
class LaunchPlan:
    """A job on nodes of the same number of ranks.

    Attributes:
        command: what every rank runs, with what follows from the nodes.
        config: the configuration that this has.
        nodes: with their addresses; empty where the user gave their number alone.
        node_count, ranks_per_node: of the job.
        place: of this machine among the nodes; None: the job is started on all of them from here.
        meeting: of the ranks.
        on_cpu: whether the ranks are sure to run on CPU.
    """

    command: RankCommand
    config: Config
    nodes: Tuple[Node, ...]
    node_count: int
    ranks_per_node: int
    place: Optional[int]
    meeting: Meeting
    on_cpu: bool

    @property
    def total_ranks(self) -> int:
        return self.node_count * self.ranks_per_node

    @property
    def own_ranks(self) -> Sequence[int]:
        """The ranks of this machine."""
        first = (self.place or 0) * self.ranks_per_node
        return range(first, first + self.ranks_per_node)

    @property
    def node_folder(self) -> str:
        """This node's folder in the launch's; empty: there is one node, or each has its own launcher to make it."""
        return "" if self.place is None or self.node_count == 1 else f"node_{self.place}"


def check_command(command: RankCommand) -> None:
    """Raises InputError: what takes the place of training is unknown, there twice, or its arguments are there alone."""
    if command.bench not in (None, ALL_TO_ALL, SELF_TEST):
        raise InputError(f"--bench: found '{command.bench}', expected {ALL_TO_ALL} or {SELF_TEST}")
    if command.bench and command.generate:
        raise InputError("--generate: given with --bench; expected one of them")
    if command.further and not (command.bench or command.generate):
        raise InputError(
            f"found '{command.further[0]}' after --, which --bench and --generate take; expected one of them"
        )


def own_place(nodes: Sequence[Node], option: str) -> Optional[int]:
    """The place of this machine among the nodes; None: it is none of them.

    Args:
        nodes: of the job.
        option: that says which one it is.

    Raises:
        InputError: several of the nodes are this machine.
    """
    found = [place for place, node in enumerate(nodes) if node.is_own]
    if len(found) > 1:
        raise InputError(
            f"{option}: not given; expected it, since several of the nodes are this machine "
            f"({' '.join(map(str, found))})"
        )
    return found[0] if found else None


def require_addresses(nodes: Sequence[Node]) -> None:
    """Raises InputError: a node's name does not resolve."""
    for place, node in enumerate(nodes):
        if node.address is None:
            raise InputError(f"node {place}: the name {node.name} does not resolve; expected an address")


def check_secret(reason: str) -> None:
    """Checks the secret of the environment, which several launchers share. `reason`: why, for the message.

    Raises InputError: it is not set, or malformed.
    """
    secret = os.environ.get(SECRET, "")
    if not re.fullmatch("[0-9a-fA-F]{64}", secret):
        raise InputError(
            f"environment variable {SECRET}: {'malformed' if secret else 'not set'}; with {reason} expected the same "
            "64 hexadecimal digits on every node"
        )


def meeting_of(master_addr: str, node_addr: str, port: Optional[int], shared: bool) -> Meeting:
    """Where ranks meet; what is not given is drawn.

    Args:
        master_addr, node_addr: as of `Meeting`.
        port: None: a free one.
        shared: whether there are several nodes, which take the environment's secret if there is one.
    """
    given = os.environ.get(SECRET, "") if shared else ""
    return Meeting(master_addr, node_addr, port or _free_port(), given or secrets.token_hex(32), shared)


def _free_port() -> int:
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        break
    return port


def left_over(names: Sequence[str]) -> str:
    """What the environment says of the job in place of the command line; empty: nothing. `names`: variables that
    may.
    """
    found = " ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
    return f"from the environment: {found}; what is left over there, unset" if found else ""


def with_hint(hint: str, check: Callable[[], None]) -> None:
    """Runs a check whose errors end with what of the input the user may not have given."""
    try:
        check()
    except InputError as error:
        raise InputError(f"{error}; {hint}" if hint else str(error)) from None
