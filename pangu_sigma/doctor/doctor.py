"""`pangu-sigma doctor`: what would keep a job from running on this machine, or on all of its nodes, before it is
tried.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.doctor.ascend import accepted_by_mindspore, check_ascend, check_hccl, check_named_chip, found_chip
from pangu_sigma.doctor.findings import FAILURE, Finding, lines_of, shown, summary_of
from pangu_sigma.doctor.logs import check_logs
from pangu_sigma.doctor.machine import Machine
from pangu_sigma.doctor.network import Remote, check_clock, check_hccl_ports, check_names, check_nodes, check_port
from pangu_sigma.doctor.rank_table import check_table
from pangu_sigma.doctor.software import check_software, try_mindspore
from pangu_sigma.doctor.storage import check_storage
from pangu_sigma.runtime.nodes import Node, nodes_of_table, read_nodes
from pangu_sigma.runtime.strict_json import dumps


@dataclass(frozen=True)
class DoctorOptions:
    """What the command line asks for.

    Attributes:
        rank_table, nodes_file: paths of files that name the nodes.
        server: this machine's name in the rank table; None: it is found by its address.
        ranks: of the job, where no rank table says it.
        port: on which ranks meet on node 0.
        ssh_command: how to reach other nodes; None: look at this machine only.
        env_file: shell file to read on them first.
        as_json: print JSON in place of text.
        words: this command line's arguments, for the doctor of another node.
        verbose: list the checks that do not apply, too.
    """

    rank_table: Optional[str]
    server: Optional[str]
    nodes_file: Optional[str]
    ranks: Optional[int]
    port: Optional[int]
    ssh_command: Optional[str]
    env_file: Optional[str]
    as_json: bool
    words: Tuple[str, ...]
    verbose: bool = False


def doctor(config: Optional[Config], request: DoctorOptions, machine: Optional[Machine] = None) -> int:
    """Prints a line a finding, the bad ones with their fix, and one for all checks that do not apply; returns 1 if
    something failed, else 0.

    Args:
        config: of the job; None: its degrees, data and disk are not checked.
        request: what else is known of the job.
        machine: the one to look at; None: this one.

    Raises:
        InputError: the nodes file is unreadable. A bad rank table is a finding.
    """
    machine = machine or Machine()
    findings = examine(config, request, machine)
    if request.as_json:
        print(dumps({"time": time.time(), "findings": [finding.to_dict() for finding in findings]}))
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        for finding in shown(findings, request.verbose):
            print("\n".join(lines_of(finding, colour)))
        print(f"\n{summary_of(findings, request.verbose)}")
    return 1 if any(finding.level == FAILURE for finding in findings) else 0


def examine(config: Optional[Config], request: DoctorOptions, machine: Machine) -> List[Finding]:
    """All findings; MindSpore is tried while the others are made. `config`, `request`, `machine`: as in `doctor`."""
    table = request.rank_table or machine.environ.get("RANK_TABLE_FILE")
    nodes: Sequence[Node] = []
    if request.nodes_file:
        nodes = read_nodes(request.nodes_file)
    elif table:
        with suppress(InputError):  # the table's own check tells why
            nodes = nodes_of_table(table)
    is_first = not nodes or nodes[0].is_own
    chip = found_chip(machine)
    named: List[Finding] = []
    if config is not None:
        config, named = check_named_chip(config, chip)
    with ThreadPoolExecutor(1) as pool:
        tried = pool.submit(try_mindspore, machine)
        rest = [
            *check_ascend(machine, accepted_by_mindspore()),
            *named,
            *check_hccl(machine, chip),
            *check_table(machine, table, request.server, config, request.ranks),
            *check_names(nodes, port=request.port),
            check_port(machine, request.port, is_first, len(nodes)),
            check_hccl_ports(machine),
            check_clock(machine, len(nodes)),
            *check_storage(config),
            *check_logs(config),
        ]
        findings = [*check_software(machine, tried.result), *rest]
    if request.ssh_command is not None:
        findings += check_nodes(machine, nodes, Remote(request.ssh_command, request.env_file, request.words), findings)
    return findings
