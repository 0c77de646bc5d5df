"""Whatever a rank table holds: ranks that each have one device, or one line that says why not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from locmoe_ops.rank_table import read_rank_table

STRETCHES = [b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"NaN", b"1e999", b"\xef\xbb\xbf"]


def table(servers, devices):
    """As in version 1.2, which has all that version 1.0 has."""
    entries = [
        {
            "server_id": f"node_{s}",
            "host_ip": f"10.0.0.{s + 1}",
            "device": [
                {
                    "device_id": str(d),
                    "device_ip": f"192.168.{s}.{d + 1}",
                    "rank_id": str(s * devices + d),
                    "super_device_id": str(d),
                }
                for d in range(devices)
            ],
        }
        for s in range(servers)
    ]
    pods = [{"super_pod_id": "0", "server_list": [{"server_id": f"node_{s}"} for s in range(servers)]}]
    return {
        "status": "completed",
        "version": "1.2",
        "server_count": str(servers),
        "server_list": entries,
        "super_pod_list": pods,
    }


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "table.json"

    def run(content):
        path.write_bytes(content)
        try:
            found = read_rank_table(path)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 4000
            return
        assert [device.rank for device in found.devices] == list(range(found.world_size))
        assert all(
            found.server_of(device.rank).devices[device.rank % found.ranks_per_server] == device
            for device in found.devices
        )
        assert found.topology().world_size == found.world_size and len(found.device_groups) in (
            0,
            2 * len(found.servers),
        )

    return run


@settings(deadline=None)
@given(data=st.data())
def test_any_values(check, spoil, data):
    content = table(data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2, 8])))
    if data.draw(st.booleans()):
        content["version"] = "1.0"
    spoil(data, content)
    check(json.dumps(content, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass"))


@settings(deadline=None)
@given(data=st.data())
def test_any_bytes(check, data):
    """A table with stretches of it replaced, or no table at all."""
    content = json.dumps(table(1, 2)).encode() if data.draw(st.booleans()) else b""
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        inserted = data.draw(st.binary(max_size=8) | st.sampled_from(STRETCHES))
        content = content[:start] + inserted + content[start + data.draw(st.integers(0, 20)) :]
    check(content)
