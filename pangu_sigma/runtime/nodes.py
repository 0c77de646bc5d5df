"""The machines of a job: from a nodes file or a rank table; how each is reached, and which of them this one is.

A nodes file has one machine a line, node 0 first: its address or name, then, if it differs, the destination for ssh.
`#` begins a comment.
"""

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple, Union

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import read_text
from locmoe_ops.rank_table import read_rank_table


@dataclass(frozen=True)
class Node:
    """One machine of the job, and of a rank table also its ranks with their devices."""

    name: str
    address: Optional[str]  # None: the name does not resolve
    ssh: str
    ranks: Tuple[Tuple[int, int], ...] = ()

    @property
    def is_own(self) -> bool:
        return self.address is not None and is_own(self.address)


def read_nodes(path: Union[str, "os.PathLike[str]"]) -> List[Node]:
    """The nodes of a nodes file, in their order.

    Raises:
        InputError: the file cannot be read, names no node or one twice, or a line has more than two words.
    """
    lines = [line.partition("#")[0].split() for line in read_text(path, "a machine's address a line").split("\n")]
    nodes: List[Node] = []
    for number, words in enumerate(lines, start=1):
        if len(words) > 2:
            raise InputError(
                f"{path}: line {number}: found {len(words)} words, expected an address and perhaps a destination for "
                "ssh"
            )
        if words:
            nodes.append(Node(words[0], resolve(words[0]), words[-1]))
    if not nodes:
        raise InputError(f"{path}: names no machine, expected the address of one a line")
    _check_distinct(nodes, str(path))
    return nodes


def _check_distinct(nodes: Sequence[Node], path: str) -> None:
    seen: Dict[str, Node] = {}
    for node in nodes:
        first = seen.setdefault(node.address or node.name, node)
        if first is not node:
            other = "twice" if first.name == node.name else f"as {first.name} too: both are {node.address}"
            raise InputError(f"{path}: names {node.name} {other}; expected every machine once")


def nodes_of_table(path: Union[str, "os.PathLike[str]"]) -> List[Node]:
    """The servers of a rank table, in the order of their ranks. Raises InputError: see `read_rank_table`."""
    table = read_rank_table(path)
    return [
        Node(
            server.name,
            resolve(server.host),
            server.host,
            tuple((device.rank, device.number) for device in server.devices),
        )
        for server in table.servers
    ]


def resolve(name: str) -> Optional[str]:
    """The address of a name, IPv4 where it has one; an address is its own; None: it does not resolve."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def is_own(address: str) -> bool:
    """True if the address is one of this machine's: only those can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
