"""A rank table against this machine and the configuration."""

import re
from typing import List, Optional

from locmoe_ops.errors import InputError
from locmoe_ops.rank_table import RankTable, Server, read_rank_table
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate
from pangu_sigma.doctor.findings import Finding, failure, not_applicable, ok, unknown, warning
from pangu_sigma.doctor.machine import Machine
from pangu_sigma.runtime.launch import Launch
from pangu_sigma.runtime.nodes import is_own, resolve

HCCN_CONF = "/etc/hccn.conf"
MAKE = "make it anew with scripts/make_rank_table.py"


def check_table(
    machine: Machine, path: Optional[str], server: Optional[str], config: Optional[Config], ranks: Optional[int]
) -> List[Finding]:
    """Is the table whole, does it describe this machine, and does the configuration fit its ranks?

    Args:
        machine: the one that the table is to describe.
        path: of the table; None: the job has none.
        server: names this machine in the table; None: it is found by its address.
        config: of the job; None: its degrees are not checked.
        ranks: of a job without a table.
    """
    if not path:
        return [
            not_applicable(
                "rank table",
                "no rank table",
                "none is given",
                "give --rank-table, or RANK_TABLE_FILE, if the job is to use one",
            ),
            *_check_degrees(config, Launch(world_size=ranks) if ranks else None),
        ]
    try:
        table = read_rank_table(path)
    except InputError as error:
        left_over = path == machine.environ.get("RANK_TABLE_FILE")
        return [
            failure(
                "rank table", str(error), f"{MAKE}, or unset RANK_TABLE_FILE, which names it" if left_over else MAKE
            )
        ]
    shown = (
        f"version {table.version}: {table.world_size} ranks on {len(table.servers)} servers of {table.ranks_per_server}"
    )
    return [
        ok("rank table", shown),
        *_check_server(machine, table, server),
        *_check_degrees(config, Launch(world_size=table.world_size, table=table)),
    ]


def _check_server(machine: Machine, table: RankTable, name: Optional[str]) -> List[Finding]:
    own = own_server(table, name)
    if own is None:
        return [
            failure(
                "server",
                f"none of {', '.join(server.name for server in table.servers[:4])} is this machine",
                "give --server, or a table whose host_ip or server_id is this machine's address",
            )
        ]
    findings = [ok("server", f"this is {own.name}, ranks {own.ranks[0]} to {own.ranks[-1]}")]
    if not machine.devices:
        return [*findings, not_applicable("table, devices", "no Ascend device", "this machine has no Ascend device")]
    if machine.environ.get("ASCEND_RT_VISIBLE_DEVICES"):
        findings.append(
            failure(
                "table, devices",
                f"ASCEND_RT_VISIBLE_DEVICES is '{machine.environ['ASCEND_RT_VISIBLE_DEVICES']}'",
                "unset it: the table names devices by their physical number",
            )
        )
    absent = [device.number for device in own.devices if device.number not in machine.devices]
    if absent:
        numbers = ", ".join(map(str, absent))
        return [
            *findings,
            failure(
                "table, devices",
                f"the table has devices {numbers}, this machine has not",
                f"load the driver, or {MAKE}",
            ),
        ]
    return [*findings, _check_addresses(machine, own)]


def own_server(table: RankTable, name: Optional[str]) -> Optional[Server]:
    """This machine's server: the one of that name, else the only one, else the one whose host is an address of this
    machine.
    """
    if name is not None:
        return next((server for server in table.servers if server.name == name), None)
    if len(table.servers) == 1:
        return table.servers[0]
    found = [server for server in table.servers if is_own(resolve(server.host) or "")]
    return found[0] if len(found) == 1 else None


def _check_addresses(machine: Machine, own: Server) -> Finding:
    """The addresses that the devices have, by /etc/hccn.conf, where hccn_tool keeps them."""
    fields = machine.fields(HCCN_CONF)
    if not any(re.fullmatch(r"address_\d+", name) for name in fields):
        found = f"found the devices, but no addresses in {HCCN_CONF}"
        return unknown("table, devices", found, "hccn_tool -i N -ip -g tells them")
    for device in own.devices:
        found = fields.get(f"address_{device.number}", "no address")
        if device.address not in (None, found):
            return failure(
                "table, devices",
                f"device {device.number} has {found}, by the table {device.address}",
                f"set it with hccn_tool, or {MAKE}",
            )
    return ok("table, devices", f"{len(own.devices)} devices, with the table's addresses")


def _check_degrees(config: Optional[Config], launch: Optional[Launch]) -> List[Finding]:
    if config is None:
        return [not_applicable("degrees", "no CONFIG", "no CONFIG is given")]
    if launch is None:
        return [unknown("degrees", "how many ranks there are is not known", "give --rank-table or --ranks")]
    try:
        fitting = launch.fit(config)
        validate(fitting, launch.world_size)
    except InputError as error:
        return [failure("degrees", str(error), "change the configuration, or the ranks")]
    parallel = fitting.parallel
    nodes = launch.world_size // (parallel.ranks_per_node or launch.world_size)
    text = f"expert {parallel.expert}, tensor {parallel.tensor} on {launch.world_size} ranks, {nodes} nodes"
    if nodes > 1 and parallel.expert * parallel.tensor <= launch.world_size // nodes:
        return [
            warning(
                "degrees",
                f"{text}: every node holds all experts, so no token leaves its node",
                "raise parallel.expert, if that is not meant",
            )
        ]
    return [ok("degrees", text)]
