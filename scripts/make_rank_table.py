#!/usr/bin/env python3
"""Makes an Ascend rank table (version 1.0) from the servers' device addresses, or one of several tables.

Servers get their ranks in the order in which the command line names them, and devices in the order of their numbers.
Exit status: 0 success, 2 bad input, with one line on stderr; the output appears whole or not at all.
"""

import argparse
import glob
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from locmoe_ops.errors import InputError  # noqa: E402
from locmoe_ops.json_file import JsonValue, read_json, read_text  # noqa: E402
from locmoe_ops.rank_table import parse_rank_table  # noqa: E402
from pangu_sigma.runtime.files import write_output  # noqa: E402

HCCN_TOOLS = ("hccn_tool", "/usr/local/Ascend/driver/tools/hccn_tool")
TOOL_S = 20  # what one call of hccn_tool may take

EPILOG = """
How to capture what hccn_tool says of a server's eight devices:
  for i in 0 1 2 3 4 5 6 7; do hccn_tool -i $i -ip -g; done >node_0.txt
A table of two servers, the first of which gets ranks 0 to 7:
  python scripts/make_rank_table.py --hccn 10.0.0.1=node_0.txt --hccn 10.0.0.2=node_1.txt --output rank_table.json
The same in two steps, the first of them on every server:
  python scripts/make_rank_table.py --local 10.0.0.1 --output server_0.json
  python scripts/make_rank_table.py --merge server_0.json --merge server_1.json --output rank_table.json

A server's NAME becomes its server_id. It should be the address or host name by which the other servers reach it: the
launcher and `pangu-sigma doctor` look there for the machine; give --host-ip where it is another name.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="make_rank_table.py",
        description=__doc__,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    servers = parser.add_argument_group("servers, in the order of their ranks; any of these may be repeated")
    servers.add_argument(
        "--hccn",
        dest="servers",
        metavar="NAME=FILE",
        action="append",
        type=_source("hccn"),
        default=[],
        help="addresses from captured output of `hccn_tool -i N -ip -g`, device after device, or from a copy of "
        "/etc/hccn.conf; several files with commas between them are read one after another",
    )
    servers.add_argument(
        "--addresses",
        dest="servers",
        metavar="NAME=IP,IP,...",
        action="append",
        type=_source("addresses"),
        help="addresses of the devices 0, 1, ...",
    )
    servers.add_argument(
        "--local",
        dest="servers",
        metavar="NAME",
        action="append",
        type=_source("local"),
        help="this machine: hccn_tool is asked about each of its devices",
    )
    servers.add_argument(
        "--merge",
        dest="servers",
        metavar="FILE",
        action="append",
        type=_source("merge"),
        help="servers of another rank table, version 1.0 or 1.2; their ranks are numbered anew",
    )
    parser.add_argument(
        "--host-ip",
        metavar="NAME=IP",
        action="append",
        default=[],
        type=_pair,
        help="a server's own address, for host_ip (default: none)",
    )
    parser.add_argument(
        "--devices",
        metavar="N,N,...",
        type=_numbers,
        help="take only these devices of servers not given by --merge (default: all)",
    )
    parser.add_argument("--output", metavar="FILE", help="file to write (default: standard output)")
    return parser


def _source(kind: str) -> Any:
    def read(text: str) -> Tuple[str, str, str]:
        if kind in ("local", "merge"):
            return kind, text, ""
        return (kind, *_pair(text))

    read.__name__ = {"merge": "file", "local": "name"}.get(kind, "NAME=...")
    return read


def _pair(text: str) -> Tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError
    return name, value


def _numbers(text: str) -> Tuple[int, ...]:
    numbers = tuple(int(word) for word in text.split(","))
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ValueError
    return numbers


_pair.__name__ = "NAME=..."
_numbers.__name__ = "list of different device numbers, as in 0,1,"


def make_table(options: argparse.Namespace) -> Dict[str, Any]:
    """The content of the rank table. Raises InputError: a source cannot be read, or the whole is no good table."""
    if not options.servers:
        raise InputError("no server given; expected --hccn, --addresses, --local or --merge (see --help)")
    servers: List[Dict[str, Any]] = []
    pods: List[Dict[str, Any]] = []
    versions = set()
    for kind, name, value in options.servers:
        if kind == "merge":
            content = _merged(name)
            servers += content["server_list"]
            _add_pods(pods, content.get("super_pod_list", []))
            versions.add(content["version"])
        else:
            servers.append(
                {"server_id": name, "device": _devices(name, _addresses(kind, name, value), options.devices)}
            )
            versions.add("1.0")
    if len(versions) > 1:
        raise InputError(
            "found servers of versions 1.0 and 1.2; expected one version: merge tables of 1.2 with others of 1.2 only"
        )
    _set_hosts(servers, options.host_ip)
    _number(servers)
    table = {
        "version": versions.pop(),
        "server_count": str(len(servers)),
        "server_list": servers,
        "status": "completed",
    }
    if pods:
        table["super_pod_list"] = pods
    parse_rank_table(JsonValue(table, "", options.output or "rank table"))
    return table


def _merged(path: str) -> Dict[str, Any]:
    root = read_json(path, "a rank table (JSON)")
    parse_rank_table(root)
    root.value["server_list"].sort(key=lambda server: min(int(device["rank_id"]) for device in server["device"]))
    return dict(root.value)


def _add_pods(pods: List[Dict[str, Any]], more: Sequence[Dict[str, Any]]) -> None:
    """Servers of one SuperPoD come together, whichever table they are from."""
    for pod in more:
        known = next((other for other in pods if other["super_pod_id"] == pod["super_pod_id"]), None)
        if known is None:
            pods.append(pod)
        else:
            known["server_list"] = known["server_list"] + pod["server_list"]


def _devices(name: str, addresses: Dict[int, str], wanted: Optional[Sequence[int]]) -> List[Dict[str, str]]:
    missing = [number for number in wanted or () if number not in addresses]
    if missing:
        raise InputError(
            f"--devices: {name} has no address for device {missing[0]}; found {', '.join(map(str, sorted(addresses)))}"
        )
    return [{"device_id": str(number), "device_ip": addresses[number]} for number in sorted(wanted or addresses)]


def _addresses(kind: str, name: str, value: str) -> Dict[int, str]:
    """Address of every device of a server."""
    if kind == "addresses":
        return dict(enumerate(value.split(",")))
    if kind == "local":
        return _ask_hccn_tool()
    text = "\n".join(_read(path) for path in value.split(","))
    found = read_hccn(text, value)
    if not found:
        raise InputError(
            f"{value}: no address of a device; expected output of `hccn_tool -i N -ip -g`, or /etc/hccn.conf"
        )
    return found


def read_hccn(text: str, where: str) -> Dict[int, str]:
    """Device addresses in what hccn_tool printed, or in /etc/hccn.conf.

    hccn_tool prints `ipaddr:` and `netmask:` lines and no device number: devices count from 0, or from the number in
    the last `hccn_tool -i N` that the capture shows (as `set -x` does). /etc/hccn.conf has lines `address_N=`.

    Raises:
        InputError: a line is neither, as where hccn_tool failed, or a device has two addresses.
    """
    found: Dict[int, str] = {}
    number = 0
    for line in (line.strip() for line in text.split("\n")):
        command = re.search(r"hccn_tool\s+.*-i\s*(\d+)", line)
        entry = re.fullmatch(r"(?:ipaddr\s*:|address_(\d+)\s*=)\s*(\S+)", line)
        if command:
            number = int(command[1])
        elif entry:
            number = int(entry[1] or number)
            if found.setdefault(number, entry[2]) != entry[2]:
                raise InputError(
                    f"{where}: device {number} has the addresses {found[number]} and {entry[2]}; expected one"
                )
            number += 1
        elif line and not re.fullmatch(r"netmask\s*:.*|#.*|\w+\s*=.*", line):
            raise InputError(
                f"{where}: found '{line[:60]}', expected lines of `hccn_tool -i N -ip -g` (ipaddr:..., netmask:...) or "
                "of /etc/hccn.conf (address_0=...)"
            )
    return found


def _ask_hccn_tool() -> Dict[int, str]:
    tool = next((path for path in map(shutil.which, HCCN_TOOLS) if path), None)
    numbers = sorted(int(path[len("/dev/davinci") :]) for path in glob.glob("/dev/davinci[0-9]*"))
    if tool is None or not numbers:
        raise InputError(
            f"--local: found {'no Ascend device (/dev/davinci*)' if tool else 'no hccn_tool'} on this machine; "
            "expected a server with its driver installed"
        )
    found = {}
    for number in numbers:
        done = subprocess.run(
            [tool, "-i", str(number), "-ip", "-g"], capture_output=True, text=True, errors="replace", timeout=TOOL_S
        )
        found.update(read_hccn(f"hccn_tool -i {number}\n{done.stdout}", f"hccn_tool -i {number} -ip -g"))
        if number not in found:
            raise InputError(
                f"--local: device {number} has no address ({(done.stderr or done.stdout).strip()[:60]}); "
                "expected one, set with hccn_tool -i N -ip -s"
            )
    return found


def _set_hosts(servers: Sequence[Dict[str, Any]], hosts: Sequence[Tuple[str, str]]) -> None:
    for name, address in hosts:
        matches = [server for server in servers if server["server_id"] == name]
        if not matches:
            known = ", ".join(server["server_id"] for server in servers)
            raise InputError(f"--host-ip: found no server '{name}', expected one of {known}")
        matches[0]["host_ip"] = address


def _number(servers: Sequence[Dict[str, Any]]) -> None:
    """Ranks 0, 1, ... in the order of servers, and of their devices' earlier ranks or else numbers."""
    rank = 0
    for server in servers:
        for device in sorted(server["device"], key=lambda device: int(device.get("rank_id", device["device_id"]))):
            device["rank_id"] = str(rank)
            rank += 1
        server["device"].sort(key=lambda device: int(device["rank_id"]))


def _read(path: str) -> str:
    return read_text(path, "what hccn_tool printed, or /etc/hccn.conf")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    try:
        options = _parser().parse_args(arguments)
        text = json.dumps(make_table(options), indent=2) + "\n"
        if options.output is None:
            print(text, end="")
            return 0
        write_output("--output", Path(options.output), text, (b'{\n  "version": "1.',))
    except (InputError, subprocess.TimeoutExpired) as error:
        print(f"make_rank_table.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
