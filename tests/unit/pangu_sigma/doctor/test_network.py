"""The doctor between nodes: names, answers, ports, clocks, and what comes back over ssh."""

import errno
import json
import socket
import time

import pytest

from helpers.ports import free_port
from pangu_sigma.doctor import network as doctor_network
from pangu_sigma.doctor.findings import FAILURE, OK, UNKNOWN, WARNING, failure, ok, unknown
from pangu_sigma.doctor.machine import Machine, Ran
from pangu_sigma.runtime.nodes import Node

FIRST, SECOND, THIRD = (Node(f"node_{i}", f"198.18.0.{i + 1}", f"198.18.0.{i + 1}") for i in range(3))
REMOTE = doctor_network.Remote("ssh -q", "set_env.sh", ("config.yaml", "--port", "2345"))


@pytest.fixture
def this_is(monkeypatch):
    """Makes this machine the one of an address."""
    return lambda address: monkeypatch.setattr("pangu_sigma.runtime.nodes.is_own", lambda other: other == address)


def names(nodes, answers=None):
    return {
        finding.subject: finding
        for finding in doctor_network.check_names(
            nodes, 2345, lambda address, port: (answers or {}).get((address, port))
        )
    }


def test_nodes_that_answer(this_is):
    this_is(SECOND.address)
    findings = names([FIRST, SECOND, THIRD])
    assert findings["names"].found == "3 nodes, of which this is node 1, node_1"
    assert (findings["reachable"].level, findings["reachable"].found) == (OK, "2 other nodes answer")


@pytest.mark.parametrize(
    ("nodes", "level", "fragment"),
    [
        ([], UNKNOWN, "no other node is known"),
        ([FIRST], UNKNOWN, "no other node is known"),
        ([FIRST, Node("node_9", None, "node_9")], FAILURE, "node_9 does not resolve (1 of 2)"),
        (
            [FIRST, Node("node_1", "127.0.1.1", "node_1")],
            FAILURE,
            "node_1 is 127.0.1.1 here, which no other node reaches",
        ),
        ([FIRST, SECOND], WARNING, "none of the 2 nodes has an address of this machine"),
    ],
)
def test_names(nodes, level, fragment):
    finding = names(nodes)["names"]
    assert finding.level == level and fragment in finding.found


@pytest.mark.parametrize(
    ("error", "level", "fragment"),
    [
        (errno.ETIMEDOUT, WARNING, "node_1 did not answer on port 2345 within 2 s (1 of 2)"),
        (errno.EHOSTUNREACH, FAILURE, "no way to node_1 (1 of 2)"),
    ],
)
def test_nodes_that_do_not_answer(this_is, error, level, fragment):
    this_is(FIRST.address)
    finding = names([FIRST, SECOND, THIRD], {(SECOND.address, 2345): error})["reachable"]
    assert finding.level == level and fragment in finding.found


def test_a_refusal_is_an_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor_network.answer_of("127.0.0.1", port) is None
    assert doctor_network.answer_of("127.0.0.1", port) is None


# ---- ports


@pytest.fixture
def with_ports(tmp_path):
    def _make(reserved="\n", devices=0, environ=None):
        proc = tmp_path / "proc" / "sys" / "net" / "ipv4"
        proc.mkdir(parents=True)
        (proc / "ip_local_port_range").write_text("32768\t60999\n")
        (proc / "ip_local_reserved_ports").write_text(reserved)
        (tmp_path / "dev").mkdir()
        for number in range(devices):
            (tmp_path / "dev" / f"davinci{number}").touch()
        return Machine(root=tmp_path, environ=environ or {})

    return _make


def ports(machine, port=None, is_first=True):
    found = doctor_network.check_port(machine, port, is_first), doctor_network.check_hccl_ports(machine)
    return {finding.subject: finding for finding in found}


def test_a_taken_port(with_ports):
    machine = with_ports()
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert ports(machine, port)["port"].level == FAILURE
        assert ports(machine, port, is_first=False)["port"].level == OK
    assert ports(machine)["port"].level == UNKNOWN


def test_a_port_that_the_system_may_hand_out(with_ports):
    port = free_port()  # the system has just handed it out
    finding = ports(with_ports(), port)["port"]
    assert finding.level == WARNING and "hands out ports 32768 to 60999" in finding.found and str(port) in finding.fix


def test_a_reserved_port(with_ports):
    port = free_port()
    assert ports(with_ports(f"1000-1001,{port}\n"), port)["port"].level == OK


@pytest.mark.parametrize(
    ("reserved", "level"),
    [("60000-60031", OK), ("60000-60015,60016-60031", OK), ("60000-60015", WARNING), ("\n", WARNING)],
)
def test_hccls_ports(with_ports, monkeypatch, reserved, level):
    monkeypatch.setattr(doctor_network, "_is_free", lambda port: True)
    finding = ports(with_ports(reserved, devices=1))["HCCL's ports"]
    assert finding.level == level and "60000 to 60031" in finding.found


def test_hccls_ports_taken_or_not_needed(with_ports, monkeypatch):
    monkeypatch.setattr(doctor_network, "_is_free", lambda port: port != 50003)
    machine = with_ports(devices=1, environ={"HCCL_IF_BASE_PORT": "50000"})
    finding = ports(machine)["HCCL's ports"]
    assert finding.level == FAILURE and "50003 is in use; HCCL takes 50000 to 50031" in finding.found
    assert ports(Machine(root=machine.root / "nothing", environ={}))["HCCL's ports"].level == UNKNOWN


@pytest.mark.parametrize(
    ("nodes", "state", "level"), [(1, False, UNKNOWN), (2, True, OK), (2, False, WARNING), (2, None, UNKNOWN)]
)
def test_clock(nodes, state, level):
    assert doctor_network.check_clock(Machine(clock=lambda: state), nodes).level == level


# ---- over ssh


def remote(findings, own=(), skew=0.0, date=None, doctor=None):
    """Findings about node_1 where its doctor finds `findings`, its clock is ahead by `skew` seconds and each command
    ends as given.
    """
    commands = []

    def run(command, seconds=0):
        commands.append(command)
        if command[-1].startswith("date"):
            return date or Ran(0, f"{time.time() + skew:.9f}\n")
        return doctor or Ran(0, json.dumps({"time": 0, "findings": [finding.to_dict() for finding in findings]}))

    found = doctor_network.check_nodes(Machine(run=run), [SECOND], REMOTE, own)
    return {finding.subject: finding for finding in found}, commands


def test_one_line_for_a_good_node_and_one_for_each_ill():
    bad = failure("disk", "full", "make room")
    found, commands = remote([ok("Python", "3.11.4"), ok("NumPy", "1.26.4"), unknown("CANN", "no device"), bad])
    assert found["node_1"].found == "2 checks ok, 1 not made, 1 to look at:"
    assert (found["node_1: disk"].level, found["node_1: disk"].found, found["node_1: disk"].fix) == (
        FAILURE,
        "full",
        "make room",
    )
    assert [command[:3] for command in commands] == [["ssh", "-q", SECOND.ssh]] * 2
    line = commands[1][-1]
    assert line.startswith(". set_env.sh && cd ") and line.endswith(
        "-m pangu_sigma doctor config.yaml --port 2345 --json"
    )


def test_software_that_differs():
    own = [ok("Python", "3.11.4"), ok("NumPy", "1.26.4"), ok("disk", "1 TB free")]
    found, _ = remote([ok("Python", "3.10.2"), ok("NumPy", "1.26.4"), ok("disk", "2 TB free")], own)
    assert set(found) == {"node_1", "node_1: Python"}
    assert found["node_1: Python"].level == FAILURE and found["node_1: Python"].found == "3.10.2; here 3.11.4"


@pytest.mark.parametrize(
    ("skew", "level"), [(0.0, None), (0.5, None), (30.0, WARNING), (-30.0, WARNING), (600.0, FAILURE)]
)
def test_clocks_that_differ(skew, level):
    found, _ = remote([ok("Python", "3.11.4")], skew=skew)
    assert ("node_1: clock skew" in found) == (level is not None)
    assert level is None or found["node_1: clock skew"].level == level


@pytest.mark.parametrize(
    ("answers", "fragment"),
    [
        (
            {"date": Ran(255, "", "ssh: connect to host node_1 port 22: Connection refused")},
            "ssh failed: ssh: connect to host",
        ),
        ({"date": Ran(None, "", "no answer within 180 s")}, "ssh failed: no answer within"),
        ({"doctor": Ran(127, "", "sh: python: not found")}, "the doctor did not run there: sh: python: not found"),
        ({"doctor": Ran(0, "[]")}, "the doctor did not run there: status 0"),
    ],
)
def test_a_node_that_cannot_be_looked_at(answers, fragment):
    found, _ = remote([], **answers)
    assert found["node_1"].level == FAILURE and fragment in found["node_1"].found and found["node_1"].fix
