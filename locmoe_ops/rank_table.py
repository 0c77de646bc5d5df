"""Ascend rank tables: which device of which server is which rank, read from JSON and checked.

Formats: HCCL User Guide of CANN 9.0, "Rank Table Configuration" for Atlas training products and Atlas A2 (version 1.0,
hiascend.com, hcclug_000068 and hcclug_000067) and for SuperPoDs of Atlas A3 (version 1.2, hcclug_000066). All values
are strings, also the numbers, as HCCL's own parser demands (cann-hccl, topoinfo_ranktableParser.cc, GetJsonProperty).

    {"version": "1.0", "status": "completed", "server_count": "1", "server_list": [
        {"server_id": "10.0.0.1", "device": [{"device_id": "0", "device_ip": "192.168.100.101", "rank_id": "0"}, ...]}]}

Version 1.2 adds `super_device_id` to every device and `super_pod_list`, which names the servers of each SuperPoD.

The device groups of a server are those of an Atlas 800 (9000): devices 0-3 and 4-7 of an Ascend 910A server are each
joined by HCCS (mind-cluster, ascend-for-volcano, "affinity"). A table does not say which model a server is.

`python -m locmoe_ops.rank_table FILE` checks a table and shows the ranks of its servers.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import JsonValue, read_json
from locmoe_ops.topology import Topology

VERSIONS = ("1.0", "1.2")
GROUP_DEVICES = 4  # of a server with 8: the devices that HCCS joins in an Ascend 910A server
LONGEST_NAME = 64
MOST_DEVICES = 64  # of one server; the largest in use have 16


@dataclass(frozen=True)
class Device:
    """One rank's device.

    Attributes:
        rank: global rank.
        number: of the device on its server.
        address: in the network between devices; None only in a table of one server.
        super_device: its number in its SuperPoD; None in version 1.0.
    """

    rank: int
    number: int
    address: str | None
    super_device: str | None


@dataclass(frozen=True)
class Server:
    """A server and its devices.

    Attributes:
        name: server_id.
        host: where it is reached: host_ip if the table has it, else its name.
        devices: in the order of their ranks, which are consecutive.
        super_pod: its SuperPoD; None in version 1.0.
    """

    name: str
    host: str
    devices: tuple[Device, ...]
    super_pod: str | None

    @property
    def ranks(self) -> range:
        """Ranks of its devices."""
        return range(self.devices[0].rank, self.devices[0].rank + len(self.devices))


@dataclass(frozen=True)
class RankTable:
    """A checked table: ranks 0..W-1, servers in the order of their ranks, equally many devices on each."""

    version: str
    servers: tuple[Server, ...]

    @property
    def world_size(self) -> int:
        return self.ranks_per_server * len(self.servers)

    @property
    def ranks_per_server(self) -> int:
        return len(self.servers[0].devices)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """All devices; rank r is at index r."""
        return tuple(device for server in self.servers for device in server.devices)

    def server_of(self, rank: int) -> Server:
        """Raises InputError: there is no such rank."""
        if not 0 <= rank < self.world_size:
            raise InputError(f"rank table: rank {rank} is outside 0..{self.world_size - 1}")
        return self.servers[rank // self.ranks_per_server]

    @cached_property
    def device_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks whose devices are 0-3, or 4-7, of one server; empty unless such groups are equal, whole and in order.

        On an Ascend 910A server HCCS joins the devices of a group, and a group is to locality what a node is elsewhere.
        """
        size = GROUP_DEVICES
        if self.ranks_per_server != 2 * size:
            return ()
        numbers = [device.number for device in self.devices]
        groups = tuple(tuple(range(start, start + size)) for start in range(0, self.world_size, size))
        halves = (set(range(size)), set(range(size, 2 * size)))
        return groups if all({numbers[rank] for rank in group} in halves for group in groups) else ()

    def topology(self, expert: int = 1, tensor: int = 1, ranks_per_node: int | None = None) -> Topology:
        """The ranks on their servers.

        Args:
            expert, tensor: degrees of expert and tensor parallelism.
            ranks_per_node: of a node, as `node_size` takes them; None: a server is a node.

        Raises:
            InputError: `ranks_per_node` is neither a server's number of ranks nor that of its device groups, or the
                degrees do not fit (see `Topology`).
        """
        return Topology(self.world_size, self.node_size(ranks_per_node), expert, tensor)

    def node_size(self, wanted: int | None) -> int:
        """Ranks of a node: `wanted` where the table has such nodes, a server's if None. Raises InputError otherwise."""
        sizes = [self.ranks_per_server] + ([GROUP_DEVICES] if self.device_groups else [])
        if wanted is not None and wanted not in sizes:
            groups = f", or {GROUP_DEVICES}, its groups of devices that HCCS joins in a 910A server"
            raise InputError(
                f"parallel.ranks_per_node is {wanted}, but the rank table has {self.ranks_per_server} devices a "
                f"server; expected {self.ranks_per_server}{groups if self.device_groups else ''}, or null"
            )
        return wanted or self.ranks_per_server


def read_rank_table(path: str | os.PathLike[str]) -> RankTable:
    """Reads and checks a table of version 1.0 or 1.2.

    Raises:
        InputError: the file cannot be read, is no JSON, or is no complete table in which every rank has one device of
            its own; the message names the file, the place in it, what was found and what was expected.
    """
    return parse_rank_table(read_json(path, "a rank table (JSON)"))


def parse_rank_table(root: JsonValue) -> RankTable:
    """The table in a JSON value; see `read_rank_table`."""
    version = _header(root)
    entries = root.member("server_list").items("servers")
    count = root.member("server_count")
    if count.number() != len(entries):
        raise count.error(f"{len(entries)}, the number of servers in server_list")
    pods = _super_pods(root, [entry.member("server_id").text() for entry in entries]) if version == "1.2" else {}
    servers = []
    for entry in entries:
        name = entry.member("server_id").text()
        if not 0 < len(name) <= LONGEST_NAME:
            raise entry.member("server_id").error(f"a name of 1 to {LONGEST_NAME} characters")
        host = entry.optional("host_ip")
        address = _address(host) if host else name
        devices = [_device(device, version, len(entries)) for device in entry.member("device").items("devices")]
        servers.append(Server(name, address, tuple(sorted(devices, key=lambda d: d.rank)), pods.get(name)))
    _check_unique(entries)
    _check_ranks(root, servers)
    return RankTable(version, tuple(sorted(servers, key=lambda server: server.devices[0].rank)))


def _header(root: JsonValue) -> str:
    root.require_object()
    for other in ("group_list", "rank_list", "server_group_list"):
        if other in root and "server_list" not in root:
            raise root.problem(
                f"found {other}, as in another kind of rank table; expected server_list, as in version 1.0 or 1.2"
            )
    version, status = root.member("version"), root.member("status")
    if version.text() not in VERSIONS:
        raise version.error(" or ".join(f'"{known}"' for known in VERSIONS))
    if status.text() != "completed":
        raise status.error('"completed": whoever writes the table had not finished')
    return version.text()


def _device(entry: JsonValue, version: str, servers: int) -> Device:
    number, address = entry.member("device_id"), entry.optional("device_ip")
    if number.number() >= MOST_DEVICES:
        raise number.error(f"a device number below {MOST_DEVICES}")
    if address is None and servers > 1:
        raise entry.problem(f"has no device_ip; expected one, since the table has {servers} servers")
    super_device = entry.member("super_device_id") if version == "1.2" else None
    if super_device is not None:
        super_device.number()
    return Device(
        entry.member("rank_id").number(),
        number.number(),
        _address(address) if address else None,
        super_device.text() if super_device else None,
    )


def _address(value: JsonValue) -> str:
    try:
        address = ipaddress.ip_address(value.text())
    except ValueError:
        raise value.error("an IPv4 or IPv6 address") from None
    if address.is_unspecified or address.is_multicast:
        raise value.error("an address of one interface")
    return value.text()


def _super_pods(root: JsonValue, servers: Sequence[str]) -> dict[str, str]:
    """SuperPoD of every server. Raises InputError: a server is in none, or in two, or is not in server_list."""
    pods: dict[str, str] = {}
    for pod in root.member("super_pod_list").items("SuperPoDs"):
        name = pod.member("super_pod_id")
        if name.text() in pods.values():
            raise name.error("every SuperPoD once")
        for entry in pod.member("server_list").items("servers"):
            server = entry.member("server_id")
            if server.text() not in servers:
                raise server.error("a server of server_list")
            if server.text() in pods:
                raise server.error(f"every server in one SuperPoD; it is also in that of id {pods[server.text()]}")
            pods[server.text()] = name.text()
    missing = [server for server in servers if server not in pods]
    if missing:
        raise root.member("super_pod_list").problem(
            f"names no SuperPoD for server {missing[0]}; expected every server in one"
        )
    return pods


def _check_unique(entries: Sequence[JsonValue]) -> None:
    """Server names, ranks, device numbers of a server, and addresses: each belongs to one."""
    names: dict[object, JsonValue] = {}
    ranks: dict[object, JsonValue] = {}
    addresses: dict[object, JsonValue] = {}
    for entry in entries:
        numbers: dict[object, JsonValue] = {}
        name = entry.member("server_id")
        _once(names, name.text(), name, "every server once")
        for device in entry.member("device").items("devices"):
            rank, number, address = device.member("rank_id"), device.member("device_id"), device.optional("device_ip")
            _once(ranks, rank.number(), rank, "every rank once")
            _once(numbers, number.number(), number, "every device of a server once")
            if address is not None:
                _once(
                    addresses, ipaddress.ip_address(address.text()), address, "an address of its own for every device"
                )


def _once(seen: dict[object, JsonValue], key: object, value: JsonValue, expected: str) -> None:
    first = seen.setdefault(key, value)
    if first is not value:
        raise value.error(f"{expected}; {first.path} has the same")


def _check_ranks(root: JsonValue, servers: Sequence[Server]) -> None:
    """The ranks, each of which is there once, are 0..W-1, consecutive on a server, and equally many on every server."""
    ranks = {device.rank for server in servers for device in server.devices}
    missing = next((rank for rank in range(len(ranks)) if rank not in ranks), None)
    if missing is not None:
        raise root.problem(
            f"has {len(ranks)} devices, but none has rank_id {missing}; expected ranks 0 to {len(ranks) - 1}"
        )
    first = servers[0]
    for server in servers:
        if len(server.devices) != len(first.devices):
            raise root.problem(
                f"has {len(first.devices)} devices on server {first.name} and {len(server.devices)} on {server.name}; "
                "expected equally many on every server"
            )
        found = [device.rank for device in server.devices]
        if found != list(server.ranks):
            numbers = ", ".join(map(str, found))
            raise root.problem(f"has ranks {numbers} on server {server.name}; expected consecutive ones")


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the table that the command line names and prints a line a server: its place, name, host, then rank:device
    pairs.
    """
    parser = argparse.ArgumentParser(
        prog="python -m locmoe_ops.rank_table", description="check an Ascend rank table, show its ranks"
    )
    parser.add_argument("file", metavar="FILE", help="rank table, as RANK_TABLE_FILE names it")
    try:
        table = read_rank_table(parser.parse_args(arguments).file)
    except InputError as error:
        print(f"rank table: error: {error}", file=sys.stderr)
        return 2
    for place, server in enumerate(table.servers):
        print(place, server.name, server.host, *(f"{device.rank}:{device.number}" for device in server.devices))
    return 0


if __name__ == "__main__":
    sys.exit(main())
