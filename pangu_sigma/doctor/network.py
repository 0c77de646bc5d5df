"""Between the nodes: names, whether they answer, ports, clocks; and what the doctor finds on each of them over ssh."""

import errno
import ipaddress
import json
import shlex
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from pangu_sigma.doctor.findings import (
    FAILURE,
    OK,
    UNKNOWN,
    WARNING,
    Finding,
    failure,
    not_applicable,
    ok,
    unknown,
    warning,
)
from pangu_sigma.doctor.machine import Machine, Ran
from pangu_sigma.runtime.nodes import Node

# From HCCL_IF_BASE_PORT on, for gathering the cluster (CANN 9.0, HCCL_IF_BASE_PORT; 16 before CANN 8.3).
HCCL_PORTS = 32
HCCL_BASE_PORT = 60000
ANSWER_S, SSH_S = 2.0, 180.0
SKEW_S, LARGE_SKEW_S = 1.0, 60.0
SAME_EVERYWHERE = ("Python", "NumPy", "MindSpore", "CANN", "driver", "firmware", "HCCL")
REPOSITORY = Path(__file__).resolve().parents[2]
ONE_MACHINE = "one machine"  # why there is nothing to check between nodes
PROBE_PORT = 22  # where a node is asked whether it answers, if no port of the job is known


Probe = Callable[[str, int], Optional[int]]


def answer_of(address: str, port: int) -> Optional[int]:
    """Asks `address` on `port`: None if the machine answers (a refusal is an answer), else the error number."""
    try:
        with socket.create_connection((address, port), timeout=ANSWER_S):
            return None
    except ConnectionRefusedError:
        return None
    except socket.timeout:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno or errno.EIO


def check_names(nodes: Sequence[Node], port: Optional[int] = None, probe: Probe = answer_of) -> List[Finding]:
    """Whether the nodes' names resolve, to addresses that others can use too, and whether something is there.

    Args:
        nodes: all nodes of the job, in order.
        port: where a node is asked whether it answers; None: that of ssh.
        probe: asks an address on a port, as `answer_of` does.
    """
    if len(nodes) < 2:
        return [not_applicable("names", ONE_MACHINE, "no other node is known", "give --rank-table or --nodes-file")]
    nameless = [node.name for node in nodes if node.address is None]
    if nameless:
        found = f"{nameless[0]} does not resolve ({len(nameless)} of {len(nodes)})"
        return [failure("names", found, "add it to /etc/hosts or the DNS, or give addresses")]
    loopback = [node for node in nodes if ipaddress.ip_address(str(node.address)).is_loopback]
    if loopback:
        found = f"{loopback[0].name} is {loopback[0].address} here, which no other node reaches"
        return [failure("names", found, "take that name off the 127.* line of /etc/hosts, or give an address")]
    own = [place for place, node in enumerate(nodes) if node.is_own]
    if len(own) > 1:
        found = f"nodes {', '.join(map(str, own))} are all this machine"
        finding = failure("names", found, "give every machine once")
    elif own:
        finding = ok("names", f"{len(nodes)} nodes, of which this is node {own[0]}, {nodes[own[0]].name}")
    else:
        found = f"none of the {len(nodes)} nodes has an address of this machine"
        finding = warning("names", found, "continue only if it just starts them (--ssh)")
    return [finding, _check_answers(nodes, probe, port or PROBE_PORT)]


def _check_answers(nodes: Sequence[Node], probe: Probe, port: int) -> Finding:
    others = [node for node in nodes if not node.is_own]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda node: probe(str(node.address), port), others))
    silent = [node for node, result in zip(others, results) if result is not None]
    if not silent:
        return ok("reachable", f"{len(others)} other nodes answer")
    unreachable = [node for node, result in zip(others, results) if result in (errno.EHOSTUNREACH, errno.ENETUNREACH)]
    names = ", ".join(node.name for node in (unreachable or silent)[:3])
    if unreachable:
        found = f"no way to {names} ({len(unreachable)} of {len(others)})"
        return failure("reachable", found, "check its address, cable and routes")
    return warning(
        "reachable",
        f"{names} did not answer on port {port} within {ANSWER_S:g} s ({len(silent)} of {len(others)})",
        "check the address and the firewall, which must let the nodes' ports through",
    )


# ---- ports


def check_port(machine: Machine, port: Optional[int], is_first: bool, nodes: int = 1) -> Finding:
    """The port on which ranks meet.

    Args:
        machine: whose settings say which ports the system hands out.
        port: the one that the job is to use; None: no job names one.
        is_first: whether this is node 0, the only one that needs it.
        nodes: of the job.
    """
    if port is None and nodes > 1:
        return unknown("port", "none is given", "give --port, on which the ranks are to meet")
    if port is None:
        found = "none is given, and one machine takes a free one"
        return not_applicable("port", ONE_MACHINE, found, "give --port for a job on several nodes")
    if not is_first:
        return ok("port", f"{port}, which node 0 needs, not this one")
    if not _is_free(port):
        found = f"{port} is in use on this machine"
        return failure("port", found, f"ss -ltnp 'sport = :{port}' tells by what; or take another")
    low, high = map(int, (machine.read("/proc/sys/net/ipv4/ip_local_port_range") or "32768 60999").split())
    if low <= port <= high and not _is_reserved(machine, range(port, port + 1)):
        return warning(
            "port",
            f"{port} is free, but the system hands out ports {low} to {high} by itself",
            f"take one below {low}, or sysctl -w net.ipv4.ip_local_reserved_ports={port}",
        )
    return ok("port", f"{port} is free")


def check_hccl_ports(machine: Machine) -> Finding:
    """The ports that HCCL takes on a `machine` with devices."""
    if not machine.devices:
        return not_applicable("HCCL's ports", "no Ascend device", "this machine has no Ascend device")
    text = machine.environ.get("HCCL_IF_BASE_PORT", "")
    base = int(text) if text.isdigit() and 1024 <= int(text) <= 65520 else HCCL_BASE_PORT
    wanted = range(base, min(base + HCCL_PORTS, 65536))
    taken = [number for number in wanted if not _is_free(number)]
    if taken:
        found = f"{taken[0]} is in use; HCCL takes {base} to {wanted[-1]}"
        return failure("HCCL's ports", found, "end what holds it, or set HCCL_IF_BASE_PORT")
    if not _is_reserved(machine, wanted):
        found = f"{base} to {wanted[-1]} are free now, but not reserved"
        return warning("HCCL's ports", found, f"sysctl -w net.ipv4.ip_local_reserved_ports={base}-{wanted[-1]}")
    return ok("HCCL's ports", f"{base} to {wanted[-1]} are free and reserved")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _is_reserved(machine: Machine, wanted: range) -> bool:
    reserved = (machine.read("/proc/sys/net/ipv4/ip_local_reserved_ports") or "").strip()
    spans = [tuple(map(int, part.split("-"))) for part in reserved.split(",") if part]
    return all(any(span[0] <= port <= span[-1] for span in spans) for port in wanted)


def check_clock(machine: Machine, nodes: int) -> Finding:
    """Whether the clock of `machine` is synchronised, for a job on that many `nodes`."""
    if nodes < 2:
        return not_applicable("clock", ONE_MACHINE, "one machine has no other to differ from")
    state = machine.clock()
    if state is None:
        return unknown("clock", "the kernel does not say whether it is synchronised")
    if not state:
        return warning(
            "clock", "not synchronised", "start chronyd or ntpd on every node; --ssh compares the nodes' clocks"
        )
    return ok("clock", "synchronised, says the kernel")


# ---- over ssh


class Remote(NamedTuple):
    """How to run the doctor on another node.

    Attributes:
        ssh_command: the words of ssh, up to the node's name.
        env_file: a file to source there first.
        arguments: the doctor's own.
    """

    ssh_command: str
    env_file: Optional[str]
    arguments: Tuple[str, ...]


def check_nodes(machine: Machine, nodes: Sequence[Node], remote: Remote, own: Sequence[Finding]) -> List[Finding]:
    """The doctor's findings on all other nodes, and the differences between their software and clocks and this
    machine's.

    Args:
        machine: this one, which runs ssh.
        nodes: all nodes of the job, in order.
        remote: how to run the doctor there.
        own: the findings on this machine.
    """
    others = [node for node in nodes if not node.is_own]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda node: _check_node(machine, node, remote, own), others))
    return [finding for findings in found for finding in findings]


def _check_node(machine: Machine, node: Node, remote: Remote, own: Sequence[Finding]) -> List[Finding]:
    before = time.time()
    ran = machine.run([*shlex.split(remote.ssh_command), node.ssh, "date +%s.%N"], SSH_S)
    after = time.time()
    try:
        skew = abs(float(ran.output) - (before + after) / 2) - (after - before) / 2
    except ValueError:
        fix = f"make '{remote.ssh_command} {node.ssh} true' work without a password"
        return [failure(node.name, f"ssh failed: {_reason(ran)}", fix)]
    ran = machine.run([*shlex.split(remote.ssh_command), node.ssh, _command(remote)], SSH_S)
    try:
        findings = [Finding.from_dict(entry) for entry in json.loads(ran.output)["findings"]]
    except (ValueError, KeyError, TypeError):
        fix = "have this project, its Python and this folder there too"
        return [failure(node.name, f"the doctor did not run there: {_reason(ran)}", fix)]
    # One line for what is well, one each for what is not.
    well, not_made = (sum(finding.level == level for finding in findings) for level in (OK, UNKNOWN))
    bad = [replace(f, subject=f"{node.name}: {f.subject}") for f in findings if f.level in (WARNING, FAILURE)]
    text = f"{well} checks ok, {not_made} not made, {len(bad)} to look at{':' if bad else ''}"
    return [ok(node.name, text), *bad, *_differences(node.name, skew, findings, own)]


def _reason(ran: Ran) -> str:
    return (ran.errors.strip().splitlines() or [f"status {ran.status}"])[-1]


def _command(remote: Remote) -> str:
    """A shell line: this project, this interpreter and this folder, at the same place on the node."""
    words = [sys.executable, "-m", "pangu_sigma", "doctor", *remote.arguments, "--json"]
    source = f". {shlex.quote(remote.env_file)} && " if remote.env_file else ""
    path = f"PYTHONPATH={shlex.quote(str(REPOSITORY))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return f"{source}cd {shlex.quote(str(Path.cwd()))} && {path} {shlex.join(words)}"


def _differences(name: str, skew: float, findings: Sequence[Finding], own: Sequence[Finding]) -> List[Finding]:
    """`skew`: by how much the clocks differ at least, in seconds."""
    differences = []
    if skew > SKEW_S:
        kind = failure if skew > LARGE_SKEW_S else warning
        found = f"differs from this machine's by {skew:.1f} s or more"
        differences.append(kind(f"{name}: clock skew", found, "start chronyd or ntpd on every node"))
    here = {finding.subject: finding.found for finding in own if finding.level == OK}
    there = {finding.subject: finding.found for finding in findings if finding.level == OK}
    return differences + [
        failure(f"{name}: {subject}", f"{there[subject]}; here {here[subject]}", "make it the same on every node")
        for subject in SAME_EVERYWHERE
        if subject in here and subject in there and here[subject] != there[subject]
    ]
