"""Rank tables: a corpus of good and bad ones, and what a good one says of nodes, devices and device groups."""

import copy
import json

import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.rank_table import main, read_rank_table

GONE = object()


def table(servers=2, devices=2, **changed):
    """As in the HCCL user guide: server s has the devices 0.. with the addresses 192.168.<s + 1>.<8 + device>."""
    entries = [
        {
            "server_id": f"node_{s}",
            "device": [
                {"device_id": str(d), "device_ip": f"192.168.{s + 1}.{8 + d}", "rank_id": str(s * devices + d)}
                for d in range(devices)
            ],
        }
        for s in range(servers)
    ]
    return {"status": "completed", "version": "1.0", "server_count": str(servers), "server_list": entries, **changed}


def super_pods():
    """Two SuperPoDs of two servers, after the guide's example of version 1.2."""
    content = table(servers=4, version="1.2")
    for server in content["server_list"]:
        server["host_ip"] = f"172.16.0.10{server['server_id'][-1]}"
        for device in server["device"]:
            device["super_device_id"] = str(int(device["rank_id"]) % 4)
    content["super_pod_list"] = [
        {"super_pod_id": str(pod), "server_list": [{"server_id": f"node_{2 * pod + s}"} for s in range(2)]}
        for pod in range(2)
    ]
    return content


def changed(content, *places):
    """A copy with other values at places given as (path of names and indexes, value); GONE removes."""
    content = copy.deepcopy(content)
    for path, value in places:
        *outer, last = [int(name) if name.isdigit() else name for name in path.split(".")]
        holder = content
        for name in outer:
            holder = holder[name]
        if value is GONE:
            del holder[last]
        else:
            holder[last] = value
    return content


RANK_3, DEVICE_3 = "server_list.1.device.1.rank_id", "server_list.1.device.1.device_id"
THREE = [{"device_id": str(d), "device_ip": f"192.168.2.{8 + d}", "rank_id": str(2 + d)} for d in range(3)]
IPV6 = [(f"server_list.{s}.device.{d}.device_ip", f"fd00::{s}:{d}") for s in range(2) for d in range(2)]
SWAPPED = table()["server_list"][::-1]
DEVICES_REVERSED = [(f"server_list.0.device.{i}.device_id", str(7 - i)) for i in range(8)]
INTERLEAVED = [(f"server_list.{s}.device.{d}.rank_id", str(2 * d + s)) for s in range(2) for d in range(2)]
ALTERNATING = [(f"server_list.0.device.{r}.device_id", str(r // 2 + r % 2 * 4)) for r in range(8)]

GOOD = {
    "one server of one device": (table(1, 1), (1, 1), ()),
    "one server, no addresses": (changed(table(1, 1), ("server_list.0.device.0.device_ip", GONE)), (1, 1), ()),
    "two servers of two": (table(), (4, 2), ()),
    "servers in another order than their ranks": (changed(table(), ("server_list", SWAPPED)), (4, 2), ()),
    "more that HCCL reads, as of MindCluster": (
        changed(
            table(1, 2),
            ("server_list.0.host_ip", "10.0.0.1"),
            ("server_list.0.container_ip", "10.1.0.1"),
            ("server_list.0.hardware_type", "800I-A2-32G"),
        ),
        (2, 2),
        (),
    ),
    "with ports": (changed(table(), ("server_list.0.device.0.device_port", "16667")), (4, 2), ()),
    "IPv6": (changed(table(), *IPV6), (4, 2), ()),
    "device ids that do not begin at 0": (
        changed(table(1, 2), ("server_list.0.device.0.device_id", "6"), ("server_list.0.device.1.device_id", "7")),
        (2, 2),
        (),
    ),
    "two servers of eight": (table(2, 8), (16, 8), ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))),
    "devices 7 to 0": (changed(table(1, 8), *DEVICES_REVERSED), (8, 8), ((0, 1, 2, 3), (4, 5, 6, 7))),
    "ranks that alternate between device groups": (changed(table(1, 8), *ALTERNATING), (8, 8), ()),
    "sixteen devices": (table(1, 16), (16, 16), ()),
    "SuperPoDs": (super_pods(), (8, 2), ()),
}

BAD = {
    "empty": ("", "the file is empty"),
    "only spaces": (" \n", "the file is empty"),
    "not UTF-8": (b"{\xff}", "not UTF-8 text (byte 1)"),
    "brackets without end": ("[" * 980 + "]" * 980, "expected an object"),
    "brackets beyond all depth": ("[" * 90000, "not valid JSON (nested too deeply)"),
    "an integer of 5,000 digits": ('{"status": ' + "7" * 5000 + "}", "not valid JSON (an integer of 5000 digits)"),
    "half of a surrogate pair": (
        changed(table(), ("server_list.0.server_id", "\ud83d")),
        "[0].server_id: holds half of a surrogate pair",
    ),
    "not a number": ('{"status": NaN}', "NaN is no JSON"),
    "not JSON": ("{'version': 1}", "line 1, column 2: not valid JSON"),
    "comments, as in the guide": ('{\n"status": "completed" // fine\n}', "line 2, column 23: not valid JSON"),
    "cut off": (json.dumps(table())[:-30], "not valid JSON"),
    "a name twice": ('{"status": "completed", "status": "completed"}', "'status' is given twice"),
    "a list": ([], "found [], expected an object"),
    "null": ("null", "found null, expected an object"),
    "no version": (changed(table(), ("version", GONE)), "has no version"),
    "version as a number": (changed(table(), ("version", 1.0)), 'version: found 1.0, expected a string, as in "1.0"'),
    "version 1.1": (changed(table(), ("version", "1.1")), 'version: found "1.1", expected "1.0" or "1.2"'),
    "version 2.0": (changed(table(), ("version", "2.0")), 'version: found "2.0"'),
    "the older template": (
        {"status": "completed", "group_count": "1", "group_list": []},
        "found group_list, as in another kind",
    ),
    "rank_list of version 2.0": (
        {"version": "2.0", "rank_count": "1", "rank_list": []},
        "found rank_list, as in another kind",
    ),
    "no status": (changed(table(), ("status", GONE)), "has no status"),
    "not completed": (
        changed(table(), ("status", "initializing")),
        'status: found "initializing", expected "completed"',
    ),
    "no server_count": (changed(table(), ("server_count", GONE)), "has no server_count"),
    "server_count as a number": (
        changed(table(), ("server_count", 2)),
        'server_count: found 2, expected a string, as in "2"',
    ),
    "server_count too large": (
        changed(table(), ("server_count", "3")),
        'server_count: found "3", expected 2, the number of servers',
    ),
    "server_count as a word": (changed(table(), ("server_count", "two")), 'found "two", expected a string of digits'),
    "no server_list": (changed(table(), ("server_list", GONE)), "has no server_list"),
    "no servers": (changed(table(), ("server_list", [])), "server_list: found [], expected a list of servers"),
    "a server without a name": (
        changed(table(), ("server_list.1.server_id", GONE)),
        "server_list[1]: has no server_id",
    ),
    "an empty name": (changed(table(), ("server_list.1.server_id", "")), "a name of 1 to 64 characters"),
    "a long name": (changed(table(), ("server_list.1.server_id", "n" * 65)), "a name of 1 to 64 characters"),
    "a name twice in the list": (
        changed(table(), ("server_list.1.server_id", "node_0")),
        'server_list[1].server_id: found "node_0", expected every server once; server_list[0].server_id has',
    ),
    "host_ip is a name": (
        changed(table(), ("server_list.0.host_ip", "node_0")),
        'host_ip: found "node_0", expected an IPv4 or IPv6',
    ),
    "no devices": (
        changed(table(), ("server_list.1.device", [])),
        "server_list[1].device: found [], expected a list of devices",
    ),
    "no device list": (changed(table(), ("server_list.1.device", GONE)), "server_list[1]: has no device"),
    "a device is a number": (
        changed(table(), ("server_list.1.device.0", 7)),
        "server_list[1].device[0]: found 7, expected an object",
    ),
    "servers of unequal size": (
        changed(table(), ("server_list.1.device", THREE)),
        "has 2 devices on server node_0 and 3 on node_1",
    ),
    "no device_id": (changed(table(), (DEVICE_3, GONE)), "server_list[1].device[1]: has no device_id"),
    "a device twice": (
        changed(table(), (DEVICE_3, "0")),
        'server_list[1].device[1].device_id: found "0", expected every device',
    ),
    "the same device, written otherwise": (
        changed(table(), (DEVICE_3, "00")),
        'found "00", expected every device of a server once',
    ),
    "a device that no server has": (
        changed(table(), (DEVICE_3, "64")),
        'found "64", expected a device number below 64',
    ),
    "a negative device": (changed(table(), (DEVICE_3, "-1")), 'found "-1", expected a string of digits'),
    "no rank_id": (changed(table(), (RANK_3, GONE)), "server_list[1].device[1]: has no rank_id"),
    "rank_id as a number": (changed(table(), (RANK_3, 3)), 'rank_id: found 3, expected a string, as in "3"'),
    "a rank twice": (
        changed(table(), (RANK_3, "0")),
        'server_list[1].device[1].rank_id: found "0", expected every rank once; server_list[0].device[0].rank_id has',
    ),
    "a rank left out": (
        changed(table(), (RANK_3, "4")),
        "has 4 devices, but none has rank_id 3; expected ranks 0 to 3",
    ),
    "ranks from 1": (changed(table(1, 1), ("server_list.0.device.0.rank_id", "1")), "none has rank_id 0"),
    "a huge rank": (changed(table(), (RANK_3, "9" * 30)), "expected a string of digits"),
    "ranks that alternate between servers": (
        changed(table(), *INTERLEAVED),
        "has ranks 0, 2 on server node_0; expected consecutive",
    ),
    "no address": (
        changed(table(), ("server_list.1.device.0.device_ip", GONE)),
        "server_list[1].device[0]: has no device_ip",
    ),
    "a masked address": (
        changed(table(), ("server_list.1.device.0.device_ip", "192.1.*.6")),
        'found "192.1.*.6", expected an IPv4',
    ),
    "an address that is none": (
        changed(table(), ("server_list.1.device.0.device_ip", "192.168.1.256")),
        "expected an IPv4 or IPv6",
    ),
    "no interface's address": (
        changed(table(), ("server_list.1.device.0.device_ip", "0.0.0.0")),
        "expected an address of one interface",
    ),
    "an address twice": (
        changed(table(), ("server_list.1.device.0.device_ip", "192.168.1.8")),
        'found "192.168.1.8", expected an address of its own for every device; server_list[0].device[0].device_ip has',
    ),
    "SuperPoDs without a list of them": (changed(super_pods(), ("super_pod_list", GONE)), "has no super_pod_list"),
    "a SuperPoD of no server": (
        changed(super_pods(), ("super_pod_list.1.server_list", [])),
        "expected a list of servers",
    ),
    "a SuperPoD twice": (changed(super_pods(), ("super_pod_list.1.super_pod_id", "0")), "expected every SuperPoD once"),
    "a server in two SuperPoDs": (
        changed(super_pods(), ("super_pod_list.1.server_list.0.server_id", "node_0")),
        'found "node_0", expected every server in one SuperPoD; it is also in that of id 0',
    ),
    "a server in no SuperPoD": (
        changed(super_pods(), ("super_pod_list.1.server_list.0", GONE)),
        "no SuperPoD for server node_2",
    ),
    "a SuperPoD's server unknown": (
        changed(super_pods(), ("super_pod_list.0.server_list.0.server_id", "node_9")),
        'found "node_9", expected a server of server_list',
    ),
    "no super_device_id": (
        changed(super_pods(), ("server_list.0.device.0.super_device_id", GONE)),
        "has no super_device_id",
    ),
}


@pytest.fixture
def write(tmp_path):
    def _write(content):
        path = tmp_path / "table.json"
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return _write


@pytest.mark.parametrize("name", GOOD)
def test_good_tables(write, name):
    content, (ranks, ranks_per_server), groups = GOOD[name]
    found = read_rank_table(write(content))
    assert (found.world_size, found.ranks_per_server) == (ranks, ranks_per_server)
    assert found.device_groups == groups
    written = {
        int(device["rank_id"]): (server["server_id"], int(device["device_id"]), device.get("device_ip"))
        for server in content["server_list"]
        for device in server["device"]
    }
    assert {
        rank: (found.server_of(rank).name, found.devices[rank].number, found.devices[rank].address)
        for rank in range(ranks)
    } == written
    topology = found.topology()
    assert {rank: topology.node_of(rank) for rank in range(ranks)} == {
        rank: rank // ranks_per_server for rank in range(ranks)
    }


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_named(write, name):
    content, fragment = BAD[name]
    path = write(content)
    with pytest.raises(InputError) as caught:
        read_rank_table(path)
    assert str(caught.value).startswith(f"{path}: ") and fragment in str(caught.value), caught.value


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match="none.json: cannot be read .no such file"):
        read_rank_table(tmp_path / "none.json")


def test_super_pods_and_hosts(write):
    found = read_rank_table(write(super_pods()))
    assert [(server.host, server.super_pod) for server in found.servers] == [
        ("172.16.0.100", "0"),
        ("172.16.0.101", "0"),
        ("172.16.0.102", "1"),
        ("172.16.0.103", "1"),
    ]
    assert found.devices[5].super_device == "1"


def test_a_node_is_a_server_or_a_group_of_joined_devices(write):
    """Of 16 ranks on two 910A servers; expert parallel 8 then stays on a server, 4 in a device group."""
    found = read_rank_table(write(table(2, 8)))
    assert found.topology(expert=8).groups("node") == (tuple(range(8)), tuple(range(8, 16)))
    assert found.topology(expert=4, ranks_per_node=4).groups("node") == found.device_groups
    assert found.topology(expert=8, ranks_per_node=8) == found.topology(expert=8)
    with pytest.raises(
        InputError, match="parallel.ranks_per_node is 2, but the rank table has 8 devices a server; expected 8, or 4"
    ):
        found.topology(ranks_per_node=2)


def test_without_device_groups_only_servers_are_nodes(write):
    found = read_rank_table(write(table(2, 4)))
    with pytest.raises(
        InputError, match="ranks_per_node is 2, but the rank table has 4 devices a server; expected 4, or null"
    ):
        found.topology(ranks_per_node=2)


def test_ranks_beyond_the_table(write):
    with pytest.raises(InputError, match=r"rank 4 is outside 0\.\.3"):
        read_rank_table(write(table())).server_of(4)


def test_the_command_shows_each_server_or_the_error(write, capsys):
    assert main([str(write(changed(table(), ("server_list", SWAPPED))))]) == 0
    assert capsys.readouterr().out == "0 node_0 node_0 0:0 1:1\n1 node_1 node_1 2:0 3:1\n"
    assert main([str(write(BAD["not completed"][0]))]) == 2
    assert capsys.readouterr().err.startswith("rank table: error: ")
