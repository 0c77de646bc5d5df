"""`pangu-sigma launch`: a configuration becomes a job of several ranks."""

import argparse
from typing import Any, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.cli.arguments import add_overrides, add_plain, refuse_old_name
from pangu_sigma.config.schema import Config
from pangu_sigma.launcher.launch import launch
from pangu_sigma.launcher.request import (
    MSRUN,
    RANK_TABLE,
    SSH,
    STOP_TIMEOUT_S,
    LaunchRequest,
    Placement,
    RankCommand,
    number_of,
)
from pangu_sigma.launcher.supervise import BACK_OFF_S, LONGEST_WAIT_S, MAX_RESTARTS, Supervision
from pangu_sigma.runtime.router_files import use_router_files

_TEXT = """Trains CONFIG with several ranks, on this machine or on several; or measures there, or continues prompts.
Shows the output of this machine's first rank, and returns the job's exit status (0 success, 2 bad input, 1 any other
failure, 130 interrupted). Nothing that it started outlives it."""
_EPILOG = """With several nodes and without --ssh start it once on each, with the same arguments but for the node's rank
and address; then --port is required, and LOCMOE_MESH_SECRET must hold the same 64 hexadecimal digits everywhere
(`openssl rand -hex 32` makes some): ranks on CPU prove it to each other. With --ssh both are drawn unless given.
Defaults may come from LOCMOE_RANKS_PER_NODE, LOCMOE_NODES, LOCMOE_NODE_RANK, LOCMOE_MASTER_ADDRESS, LOCMOE_NODE_ADDRESS
and LOCMOE_PORT. OMP_NUM_THREADS (default: cores divided by ranks) and GLOG_v (MindSpore's log level, default 3: errors;
on Ascend 2, with MS_SUBMODULE_LOG_v={DEVICE:1}, which shows operators that run on the CPU for want of a device's
kernel) are respected if set. Ranks of a rank table need an Ascend device each, and CANN in the environment; with --set
runtime.device=cpu they run on CPU, joined by TCP, whatever the table's device addresses are."""
# What train_supervised.sh has always called them.
_SCRIPTS = {"train_msrun.sh": MSRUN, "train_rank_table.sh": RANK_TABLE}


def add_launch(commands: Any) -> None:
    """Adds the command to the program's parser."""
    parser = add_plain(commands, "launch", "start the ranks of a job, on one machine or on several", _launch)
    parser.description, parser.epilog = " ".join(_TEXT.split()), " ".join(_EPILOG.split())
    parser.usage = "pangu-sigma launch [OPTION ...] CONFIG [--set KEY.PATH=VALUE ...]\n       [-- FURTHER_OPTION ...]"
    parser.set_defaults(starts_ranks=True, takes_further=True, further=[])
    parser.add_argument("config", metavar="CONFIG", help="YAML configuration file")
    add_overrides(parser)
    _add_task(parser.add_argument_group("in place of training"))
    _add_machine(parser.add_argument_group("this machine"))
    _add_nodes(parser.add_argument_group("several machines"))
    _add_restarts(parser.add_argument_group("restarts"))
    refuse_old_name(parser, "--workers", "--ranks-per-node")


def _add_task(group: Any) -> None:
    group.add_argument(
        "--bench",
        metavar="WHAT",
        help="all-to-all: pangu-sigma bench all-to-all, with what follows -- as its options; self-test: try devices, "
        "groups and links (pangu-sigma doctor --self-test)",
    )
    group.add_argument(
        "--generate",
        action="store_true",
        help="continue prompts, with experts spread over the ranks: pangu-sigma generate, with what follows -- as its "
        "options",
    )


def _add_machine(group: Any) -> None:
    group.add_argument("--ranks-per-node", metavar="M", help="ranks on this machine, and on each other (default 4)")
    group.add_argument("--port", metavar="P", help="port on which the ranks meet (default: a free one; see below)")
    group.add_argument(
        "--log-dir", metavar="D", help="folder of the ranks' logs (default: <train.output_dir>/logs/launch_<n>)"
    )
    group.add_argument("--env-file", metavar="F", help="shell file to read first, such as CANN's set_env.sh")
    group.add_argument(
        "--stop-timeout",
        metavar="S",
        default=str(STOP_TIMEOUT_S),
        help="told to end (SIGTERM), the job writes a checkpoint and returns 0; after S seconds without one it is "
        f"killed and returns 143 (default {STOP_TIMEOUT_S})",
    )
    group.add_argument(
        "--bind-core",
        metavar="W",
        help="bind each rank to cores of its own (msrun --bind_core): auto, those near its NPU as npu-smi tells them; "
        """or a JSON object, as in '{"device0": ["0-23"], "device1": ["24-47"]}'. For Ascend (default: not bound)""",
    )
    group.add_argument("--dry-run", action="store_true", help="show the commands and their environment; start nothing")


def _add_nodes(group: Any) -> None:
    group.add_argument("--nodes", metavar="N", help="machines, each with M ranks (default 1)")
    group.add_argument("--node-rank", metavar="R", help="which of them this one is, from 0 (default 0)")
    group.add_argument("--master-addr", metavar="A", help="node 0's address (default 127.0.0.1, or the rank table's)")
    group.add_argument(
        "--node-addr",
        metavar="B",
        help="this machine's own address, on which its ranks listen for the others (default 127.0.0.1)",
    )
    group.add_argument(
        "--nodes-file",
        metavar="F",
        help="all of that from a file, the same on every machine: an address or name a line, node 0 first, then, if it "
        "differs, the destination for ssh; # begins a comment. --node-rank is needed only if several lines are this "
        "machine",
    )
    group.add_argument(
        "--rank-table",
        metavar="F",
        help="a process for each device of an Ascend rank table, without msrun: the table, the same on every machine, "
        "as scripts/make_rank_table.py writes it",
    )
    group.add_argument(
        "--server",
        metavar="NAME",
        help="server_id of this machine in the rank table (default: the server whose host_ip, or else server_id, is an "
        "address or name of this machine; the only one)",
    )
    group.add_argument(
        "--launcher",
        metavar="L",
        help=f"{MSRUN} or {RANK_TABLE} (default: {RANK_TABLE} with --rank-table, else {MSRUN}); {RANK_TABLE} alone "
        "takes the table that RANK_TABLE_FILE names",
    )
    group.add_argument(
        "--ssh",
        action="store_true",
        help="start it on the nodes of --nodes-file or --rank-table from here, which need not be one of them; the "
        "folder that this runs in, the program, its Python and CONFIG must have the same names everywhere",
    )
    group.add_argument("--ssh-command", metavar="C", default=SSH, help=f"how to reach them (default: {SSH})")
    group.add_argument("--leash", action="store_true", help=argparse.SUPPRESS)  # for what --ssh starts


def _add_restarts(group: Any) -> None:
    group.add_argument(
        "--supervise",
        action="store_true",
        help="when the job fails, start it again with checkpoint.resume=auto: from its newest whole checkpoint. Bad "
        "input and a run that diverged, which would fail again, and a job that was told to end are not started again. "
        "Needs checkpoint.interval; attempts that failed are listed in <train.output_dir>/restarts.log",
    )
    group.add_argument(
        "--max-restarts",
        metavar="N",
        help=f"give up after so many restarts with no new checkpoint between them (default {MAX_RESTARTS})",
    )
    group.add_argument(
        "--back-off",
        metavar="S",
        help="seconds before the first of them; twice as long before each further one, up to "
        f"{LONGEST_WAIT_S} (default {BACK_OFF_S})",
    )


def _launch(config: Config, options: argparse.Namespace) -> int:
    use_router_files(options.router_files)
    return launch(_request(options), _supervision(options))


def _request(options: argparse.Namespace) -> LaunchRequest:
    command = RankCommand(
        options.config, tuple(options.overrides), options.bench, options.generate, tuple(options.further)
    )
    placement = Placement(**{name: getattr(options, name) for name in Placement.__dataclass_fields__})
    return LaunchRequest(
        command,
        placement,
        _launcher(options),
        options.port,
        options.log_dir or None,
        options.env_file or None,
        number_of("--stop-timeout", options.stop_timeout, 1, 99999, "seconds"),
        options.bind_core,
        options.ssh,
        options.ssh_command,
        options.leash,
        options.dry_run,
    )


def _launcher(options: argparse.Namespace) -> str:
    named = options.launcher or (MSRUN if options.rank_table is None else RANK_TABLE)
    found = _SCRIPTS.get(named, named)
    if found not in (MSRUN, RANK_TABLE):
        raise InputError(f"--launcher: found '{named}', expected {MSRUN} or {RANK_TABLE}")
    if found == MSRUN and options.rank_table is not None:
        raise InputError(f"--rank-table: given with --launcher {MSRUN}; expected one of them")
    return str(found)


def _supervision(options: argparse.Namespace) -> Optional[Supervision]:
    given = {"--max-restarts": options.max_restarts, "--back-off": options.back_off}
    if not options.supervise:
        for option, value in given.items():
            if value is not None:
                raise InputError(f"{option}: given without --supervise, which restarts")
        return None
    most, back_off = options.max_restarts or str(MAX_RESTARTS), options.back_off or str(BACK_OFF_S)
    return Supervision(
        number_of("--max-restarts", most, 0, 999999), number_of("--back-off", back_off, 0, 9999, "seconds")
    )
