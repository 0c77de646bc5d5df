"""`pangu-sigma doctor`: what would keep a job from running."""

import argparse
from typing import Any

from locmoe_ops.errors import InputError
from pangu_sigma.cli.arguments import RunByRanks, add_overrides, add_plain, of_this_rank, positive
from pangu_sigma.config.schema import Config


def add_doctor(commands: Any) -> None:
    """Adds the command to the program's parser."""
    text = "look for what would keep a job from running here, or on all of its nodes; exit status 1 if something would"
    doctor = add_plain(commands, "doctor", text, _doctor)
    doctor.add_argument(
        "config", metavar="CONFIG", nargs="?", help="YAML configuration, to check its degrees, data and disk too"
    )
    add_overrides(doctor, "one key of CONFIG")
    doctor.add_argument("--ranks", type=positive, metavar="N", help="ranks of the job, if no rank table says it")
    doctor.add_argument("--rank-table", metavar="FILE", help="Ascend rank table (default: $RANK_TABLE_FILE)")
    doctor.add_argument(
        "--server", metavar="NAME", help="this machine's server_id in it (default: found by its address)"
    )
    doctor.add_argument(
        "--nodes-file", metavar="FILE", help="the nodes, as for launch (default: the rank table's servers)"
    )
    doctor.add_argument("--port", type=positive, metavar="P", help="port on which the ranks are to meet on node 0")
    doctor.add_argument(
        "--ssh", action="store_true", help="look at all other nodes too, and compare them with this one"
    )
    doctor.add_argument(
        "--ssh-command",
        metavar="C",
        default="ssh -o BatchMode=yes -o ConnectTimeout=10",
        help="how to reach them (default: %(default)s)",
    )
    doctor.add_argument(
        "--env-file", metavar="FILE", help="shell file to read on them first, such as CANN's set_env.sh"
    )
    doctor.add_argument("--verbose", action="store_true", help="list the checks that do not apply here, too")
    doctor.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    doctor.add_argument(
        "--self-test",
        action=RunByRanks,
        help="try device, groups and links themselves instead; also by ranks of a job (launch --bench self-test)",
    )


def _doctor(config: Config, options: argparse.Namespace) -> int:
    if options.self_test:
        return _self_test(config, options)
    from pangu_sigma.doctor.doctor import DoctorOptions, doctor

    pairs = (
        ("--rank-table", options.rank_table),
        ("--nodes-file", options.nodes_file),
        ("--ranks", options.ranks),
        ("--port", options.port),
    )
    words = [
        *([options.config] if options.config else []),
        *(word for text in options.overrides for word in ("--set", text)),
        *(str(word) for name, value in pairs if value is not None for word in (name, value)),
    ]
    request = DoctorOptions(
        options.rank_table,
        options.server,
        options.nodes_file,
        options.ranks,
        options.port,
        options.ssh_command if options.ssh else None,
        options.env_file,
        options.json,
        tuple(words),
        options.verbose,
    )
    return doctor(config if options.config else None, request)


def _self_test(config: Config, options: argparse.Namespace) -> int:
    for name in ("rank_table", "server", "nodes_file", "ranks", "port", "ssh", "env_file"):
        if getattr(options, name):
            raise InputError(
                f"--{name.replace('_', '-')}: given with --self-test, which asks the launcher for its ranks and nodes; "
                "expected one of them"
            )
    config = of_this_rank(config)
    from pangu_sigma.bench.self_test import self_test

    return self_test(config, options.json)
