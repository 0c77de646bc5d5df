"""`scripts/make_rank_table.py`: from addresses, captured output or other tables to a table that HCCL's format
describes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "make_rank_table.py"

# As hccn_tool prints it, two lines a device.
CAPTURE = "".join(f"ipaddr:192.168.{100 + i % 4}.{101 + i // 4}\nnetmask:255.255.255.0\n" for i in range(8))
CONF = "".join(
    f"address_{i}=192.168.{100 + i % 4}.{201 + i // 4}\nnetmask_{i}=255.255.255.0\nsend_arp_status_{i}=1\n"
    for i in (7, 6, 5, 4, 3, 2, 1, 0)
)
SINGLE = {
    "version": "1.0",
    "status": "completed",
    "server_count": "1",
    "server_list": [
        {
            "server_id": "b",
            "container_ip": "10.9.9.9",
            "device": [
                {"device_id": "5", "device_ip": "192.168.9.5", "rank_id": "1"},
                {"device_id": "4", "device_ip": "192.168.9.4", "rank_id": "0"},
            ],
        }
    ],
}
POD = {
    "version": "1.2",
    "status": "completed",
    "server_count": "1",
    "server_list": [
        {
            "server_id": "p0",
            "device": [{"device_id": "0", "device_ip": "192.168.8.1", "super_device_id": "37748736", "rank_id": "0"}],
        }
    ],
    "super_pod_list": [{"super_pod_id": "0", "server_list": [{"server_id": "p0"}]}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "capture.txt").write_text(CAPTURE)
    (tmp_path / "hccn.conf").write_text(CONF)
    (tmp_path / "traced.txt").write_text(
        "+ hccn_tool -i 4 -ip -g\nipaddr:192.168.1.4\nnetmask:255.255.255.0\n"
        "+ hccn_tool -i 6 -ip -g\nipaddr:192.168.1.6\nnetmask:255.255.255.0\n"
    )
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfipaddr:192.168.1.4\r\nnetmask:255.255.255.0\r\n")
    (tmp_path / "single.json").write_text(json.dumps(SINGLE))
    (tmp_path / "pod0.json").write_text(json.dumps(POD))
    (tmp_path / "pod1.json").write_text(json.dumps(POD).replace("p0", "p1").replace("192.168.8.1", "192.168.8.2"))
    (tmp_path / "failed.txt").write_text(
        "ipaddr:192.168.1.4\nnetmask:255.255.255.0\nhccn_tool is busy, please try again.\n"
    )
    (tmp_path / "twice.txt").write_text(
        "hccn_tool -i 0 -ip -g\nipaddr:192.168.1.4\nhccn_tool -i 0 -ip -g\nipaddr:192.168.1.5\n"
    )
    (tmp_path / "empty.txt").write_text("\n")
    return tmp_path


@pytest.fixture
def make(folder):
    def _make(*arguments, **variables):
        return subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **variables},
        )

    return _make


def made(done):
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def pairs(server):
    return [(int(device["rank_id"]), int(device["device_id"]), device["device_ip"]) for device in server["device"]]


def test_captured_output_and_configuration_of_two_servers(make, folder):
    done = make("--hccn", "10.0.0.1=capture.txt", "--hccn", "10.0.0.2=hccn.conf", "--output", "table.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    table = json.loads((folder / "table.json").read_text())
    assert {name: table[name] for name in ("version", "status", "server_count")} == {
        "version": "1.0",
        "status": "completed",
        "server_count": "2",
    }
    first, second = table["server_list"]
    assert (first["server_id"], second["server_id"]) == ("10.0.0.1", "10.0.0.2")
    assert pairs(first) == [(i, i, f"192.168.{100 + i % 4}.{101 + i // 4}") for i in range(8)]
    assert pairs(second) == [(8 + i, i, f"192.168.{100 + i % 4}.{201 + i // 4}") for i in range(8)]


def test_a_capture_that_shows_its_commands_numbers_devices(make):
    (server,) = made(make("--hccn", "a=marked.txt"))["server_list"]
    assert server["device"][0]["device_ip"] == "192.168.1.4"
    (server,) = made(make("--hccn", "a=traced.txt"))["server_list"]
    assert pairs(server) == [(0, 4, "192.168.1.4"), (1, 6, "192.168.1.6")]


def test_files_of_one_server_are_read_one_after_another(make, folder):
    for i in range(2):
        (folder / f"device{i}").write_text(f"ipaddr:192.168.1.{i + 1}\nnetmask:255.255.255.0\n")
    (server,) = made(make("--hccn=a=device0,device1"))["server_list"]
    assert pairs(server) == [(0, 0, "192.168.1.1"), (1, 1, "192.168.1.2")]


def test_addresses_and_hosts(make):
    table = made(
        make(
            "--addresses",
            "node_0=192.168.1.1,192.168.2.1",
            "--addresses",
            "node_1=fd00::1,fd00::2",
            "--host-ip",
            "node_1=10.0.0.2",
        )
    )
    assert [pairs(server) for server in table["server_list"]] == [
        [(0, 0, "192.168.1.1"), (1, 1, "192.168.2.1")],
        [(2, 0, "fd00::1"), (3, 1, "fd00::2")],
    ]
    assert [server.get("host_ip") for server in table["server_list"]] == [None, "10.0.0.2"]


def test_some_devices_of_every_server(make):
    table = made(make("--hccn", "a=capture.txt", "--hccn", "b=hccn.conf", "--devices", "5,4"))
    assert [[device for _, device, _ in pairs(server)] for server in table["server_list"]] == [[4, 5], [4, 5]]


def test_merging_keeps_order_and_fields_and_numbers_anew(make):
    table = made(make("--addresses", "a=192.168.1.1,192.168.1.2", "--merge", "single.json"))
    first, second = table["server_list"]
    assert pairs(first) == [(0, 0, "192.168.1.1"), (1, 1, "192.168.1.2")]
    assert pairs(second) == [(2, 4, "192.168.9.4"), (3, 5, "192.168.9.5")]
    assert second["container_ip"] == "10.9.9.9"


def test_merging_super_pods(make):
    table = made(make("--merge", "pod1.json", "--merge", "pod0.json"))
    assert table["version"] == "1.2" and [server["server_id"] for server in table["server_list"]] == ["p1", "p0"]
    assert table["super_pod_list"] == [{"super_pod_id": "0", "server_list": [{"server_id": "p1"}, {"server_id": "p0"}]}]


def test_this_machine_is_asked(make, folder):
    """Without Ascend it says so; with a stand-in for hccn_tool it still misses the devices."""
    done = make("--local", "a", PATH="/nowhere")
    assert done.returncode == 2 and "--local: found no hccn_tool on this machine" in done.stderr
    tool = folder / "hccn_tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    done = make("--local", "a", PATH=f"{folder}")
    assert done.returncode == 2 and "--local: found no Ascend device (/dev/davinci*)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "no server given; expected --hccn, --addresses, --local or --merge"),
        (["--addresses", "192.168.1.1"], "--addresses: invalid NAME=... value: '192.168.1.1'"),
        (
            ["--addresses", "a=192.168.1"],
            'server_list[0].device[0].device_ip: found "192.168.1", expected an IPv4 or IPv6 address',
        ),
        (["--addresses", "a=192.168.1.1", "--addresses", "a=192.168.1.2"], 'found "a", expected every server once'),
        (
            ["--addresses", "a=192.168.1.1", "--addresses", "b=192.168.1.1"],
            "expected an address of its own for every device",
        ),
        (
            ["--addresses", "a=192.168.1.1", "--addresses", "b=192.168.1.2,192.168.1.3"],
            "has 1 devices on server a and 2 on b",
        ),
        (
            ["--addresses", "a=192.168.1.1", "--host-ip", "b=10.0.0.1"],
            "--host-ip: found no server 'b', expected one of a",
        ),
        (["--addresses", "a=192.168.1.1", "--devices", "1"], "--devices: a has no address for device 1; found 0"),
        (["--addresses", "a=192.168.1.1", "--devices", "0,0"], "--devices: invalid list of different device numbers"),
        (["--addresses", "a=192.168.1.1", "--output", "capture.txt/x"], "--output capture.txt/x: cannot be written"),
        (["--hccn", "a=absent"], "absent: cannot be read (no such file"),
        (["--hccn", "a=failed.txt"], "failed.txt: found 'hccn_tool is busy, please try again.', expected lines of"),
        (["--hccn", "a=twice.txt"], "twice.txt: device 0 has the addresses 192.168.1.4 and 192.168.1.5; expected one"),
        (["--hccn", "a=empty.txt"], "empty.txt: no address of a device"),
        (["--merge", "capture.txt"], "capture.txt: line 1, column 1: not valid JSON"),
        (["--merge", "absent.json"], "absent.json: cannot be read"),
        (["--merge", "single.json", "--merge", "single.json"], 'found "b", expected every server once'),
        (["--merge", "single.json", "--merge", "pod0.json"], "found servers of versions 1.0 and 1.2"),
        (["--merge", "single.json", "more"], "unrecognized arguments: more"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(make, folder, arguments, fragment):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = make(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("make_rank_table.py: error: ") and fragment in line
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_help_names_every_option(make):
    done = make("--help", COLUMNS="120")
    assert done.returncode == 0
    for option in ("--hccn", "--addresses", "--local", "--merge", "--host-ip", "--devices", "--output", "--help"):
        assert option in done.stdout
