"""The doctor on a rank table: against the machine's name, devices and addresses, and against the configuration's
degrees.
"""

import json
from dataclasses import replace

import pytest

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.doctor.findings import FAILURE, OK, UNKNOWN, WARNING
from pangu_sigma.doctor.machine import Machine
from pangu_sigma.doctor.rank_table import check_table

HCCN = "".join(f"address_{i}=192.168.{i}.1\nnetmask_{i}=255.255.255.0\n" for i in range(8))


@pytest.fixture
def table(tmp_path):
    """Two servers of eight, of which the first is this machine."""
    servers = [
        {
            "server_id": f"node_{s}",
            "host_ip": host,
            "device": [
                {"device_id": str(d), "device_ip": f"192.168.{d}.{s + 1}", "rank_id": str(8 * s + d)} for d in range(8)
            ],
        }
        for s, host in enumerate(("127.0.0.1", "198.18.0.2"))
    ]
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"version": "1.0", "status": "completed", "server_count": "2", "server_list": servers}))
    return str(path)


@pytest.fixture
def machine(tmp_path):
    def _make(devices=8, hccn=HCCN, environ=None):
        for folder in ("dev", "etc"):
            (tmp_path / folder).mkdir()
        for number in range(devices):
            (tmp_path / "dev" / f"davinci{number}").touch()
        if hccn:
            (tmp_path / "etc" / "hccn.conf").write_text(hccn)
        return Machine(root=tmp_path, environ=environ or {})

    return _make


def found(machine, path, server=None, config=None, ranks=None):
    return {finding.subject: finding for finding in check_table(machine, path, server, config, ranks)}


def config(**parallel):
    return config_from_dict({"parallel": parallel, "moe": {"num_experts": 16}, "train": {"global_batch_size": 16}})


def test_a_table_that_fits(machine, table):
    findings = found(machine(), table, config=config(expert=16))
    assert {subject: finding.level for subject, finding in findings.items()} == {
        "rank table": OK,
        "server": OK,
        "table, devices": OK,
        "degrees": OK,
    }
    assert findings["rank table"].found == "version 1.0: 16 ranks on 2 servers of 8"
    assert findings["server"].found == "this is node_0, ranks 0 to 7"
    assert findings["degrees"].found == "expert 16, tensor 1 on 16 ranks, 2 nodes"


@pytest.mark.parametrize(
    ("settings", "arguments", "subject", "level", "fragment"),
    [
        ({}, {"server": "node_1"}, "server", OK, "this is node_1, ranks 8 to 15"),
        ({}, {"server": "node_9"}, "server", FAILURE, "none of node_0, node_1 is this machine"),
        ({"devices": 0}, {}, "table, devices", UNKNOWN, "no Ascend device"),
        ({"devices": 6}, {}, "table, devices", FAILURE, "the table has devices 6, 7, this machine has not"),
        (
            {"hccn": HCCN.replace("3.1", "3.9")},
            {},
            "table, devices",
            FAILURE,
            "device 3 has 192.168.3.9, by the table 192.168.3.1",
        ),
        ({"hccn": HCCN.replace("address_7", "gateway_7")}, {}, "table, devices", FAILURE, "device 7 has no address"),
        ({"hccn": ""}, {}, "table, devices", UNKNOWN, "no addresses in /etc/hccn.conf"),
        ({}, {"server": "node_1"}, "table, devices", FAILURE, "device 0 has 192.168.0.1, by the table 192.168.0.2"),
        ({}, {"config": config(expert=3)}, "degrees", FAILURE, "parallel.expert"),
        (
            {},
            {"config": config(expert=16, ranks_per_node=2)},
            "degrees",
            FAILURE,
            "parallel.ranks_per_node is 2, but the rank table has 8",
        ),
        ({}, {"config": config(expert=8)}, "degrees", WARNING, "every node holds all experts"),
        ({}, {"config": config(expert=8, ranks_per_node=4)}, "degrees", OK, "expert 8, tensor 1 on 16 ranks, 4 nodes"),
        ({}, {}, "degrees", UNKNOWN, "no CONFIG is given"),
    ],
)
def test_against_machine_and_configuration(machine, table, settings, arguments, subject, level, fragment):
    finding = found(machine(**settings), table, **arguments)[subject]
    assert finding.level == level and fragment in finding.found


def test_devices_that_are_hidden(machine, table):
    findings = check_table(machine(environ={"ASCEND_RT_VISIBLE_DEVICES": "4,5"}), table, None, None, None)
    assert any(
        finding.level == FAILURE and "ASCEND_RT_VISIBLE_DEVICES is '4,5'" in finding.found for finding in findings
    )


def test_a_bad_table_is_a_finding(machine, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('{"version": "3.0", "status": "completed", "server_list": []}')
    (finding,) = check_table(machine(), str(path), None, None, None)
    assert (
        finding.level == FAILURE
        and f'{path}: version: found "3.0"' in finding.found
        and "make_rank_table.py" in finding.fix
    )


def test_without_a_table(machine):
    here = machine()
    assert {subject: finding.level for subject, finding in found(here, None).items()} == {
        "rank table": UNKNOWN,
        "degrees": UNKNOWN,
    }
    assert found(here, None, config=config(expert=16))["degrees"].level == UNKNOWN
    assert found(here, None, config=config(expert=16), ranks=16)["degrees"].level == OK
    assert found(here, None, config=config(expert=16), ranks=8)["degrees"].level == FAILURE


@pytest.mark.parametrize("left_over", [True, False])
def test_a_table_that_a_variable_names_and_that_is_gone(machine, left_over):
    environ = {"RANK_TABLE_FILE": "/no/such.json"} if left_over else None
    (finding, *_) = check_table(machine(environ=environ), "/no/such.json", None, None, None)
    assert finding.level == FAILURE and "/no/such.json: cannot be read" in finding.found
    assert ("unset RANK_TABLE_FILE" in finding.fix) == left_over


@pytest.mark.parametrize(("chip", "level"), [("910a", FAILURE), ("910b", OK)])
def test_degrees_that_hccl_rules_out_on_the_chip(machine, table, chip, level):
    given = config(expert=16, tensor=1)
    given = replace(given, runtime=replace(given.runtime, device="ascend", chip=chip))
    given = replace(given, moe=replace(given.moe, dispatch=replace(given.moe.dispatch, type="hierarchical")))
    finding = found(machine(), table, config=given)["degrees"]
    assert finding.level == level
    if level == FAILURE:
        assert "among ranks 0, 8 on runtime.chip 910a, where HCCL's all-to-all does not do so" in finding.found
        assert "parallel.all_to_all: gathered" in finding.found
