"""The `pangu-sigma` command: alone, or as every rank of a job that msrun started.

Exit status: 0 success; 2 bad input, with one line on stderr; 1 anything else; 130 interrupted. Nothing heavy is
imported before it is needed: `--help` and most bad input are answered without MindSpore.
"""

import argparse
import ctypes
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, Optional, Sequence, Tuple

import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import load_config, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import check_paths, resolve_runtime, validate
from pangu_sigma.inference.arguments import add_bench_decode, add_export, add_generate
from pangu_sigma.launch import is_worker, rank_name, read_launch
from pangu_sigma.reporting import SUCCESS, append_line, report_error
from pangu_sigma.tools.audit.arguments import add_audit
from pangu_sigma.tools.checkpoint.command import add_ckpt

INTERRUPTED = 130


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command (`sys.argv` if None) and returns its exit status; errors are reported, never raised."""
    try:
        options = _parser().parse_args(arguments)
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the outermost handler)
        return report_error(error)


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage and exits; here a wrong argument is bad input like any other."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pangu-sigma", description="PanGu-Sigma with LocMoE routing on MindSpore")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_command(commands, "prepare", "train the tokenizer and write the data folder", _prepare)
    _add_command(commands, "train", "train, alone or as a rank under msrun", _train)
    _add_command(commands, "eval", "perplexity of a checkpoint on the validation rows, in one process", _eval)
    add_generate(commands, _add_command, _positive)
    add_export(commands, _add_command, _positive)
    bench = commands.add_parser("bench", help="measure this machine and the model on it")
    benches = bench.add_subparsers(dest="bench", metavar="WHAT", required=True)
    _add_benches(benches)
    config = _add_command(commands, "config", "check a configuration and print it with all defaults", _show_config)
    config.add_argument("--ranks", type=_positive, default=1, metavar="N", help="check it for N ranks (default 1)")
    config.add_argument("--key", metavar="PATH", help="print the value of this key only, as in train.output_dir")
    summary = commands.add_parser("summary", help="compare finished runs in a table", description="compare finished runs in a table")
    summary.add_argument("runs", metavar="RUN_FOLDER", nargs="+", help="run directory that holds a summary.json, one a router")
    summary.add_argument("--output", metavar="FILE", help="also write the runs' metrics to this JSON file")
    summary.set_defaults(action=_summary)
    _add_compare(commands)
    _add_doctor(commands)
    _add_plan(commands)
    add_audit(commands, _add_command, _positive)
    add_ckpt(commands, _add_command, _positive)
    return parser


def _add_command(commands: Any, name: str, help: str, action: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    command.add_argument("config", metavar="CONFIG", help="YAML configuration file")
    command.add_argument("--set", dest="overrides", metavar="KEY.PATH=VALUE", action="append", default=[],
                         help="override one key; may be repeated")
    command.set_defaults(action=action)
    return command


def _add_benches(benches: Any) -> None:
    _add_command(benches, "step", "FLOP/s of the compiled step, and where its time goes", _bench_step)
    all_to_all = _add_command(benches, "all-to-all", "dispatchers beside the link's limit; under msrun (train_msrun.sh --bench all-to-all)",
                              _bench_all_to_all)
    all_to_all.add_argument("--tokens", type=_sizes, default=(), metavar="N,N,...",
                            help="tokens a rank (default: powers of two from 64 up to the configuration's)")
    all_to_all.add_argument("--rate", type=_rate, metavar="R",
                            help="rate of a node's link, as in 200mbit (default: measure plain exchanges)")
    _add_command(benches, "router", "routers beside the dense gate: time, and bytes of their statistics", _bench_router)
    add_bench_decode(benches, _add_command, _sizes)


def _add_compare(commands: Any) -> None:
    text = "train variants side by side and write a report; goes on where it was cut off"
    compare = commands.add_parser("compare", help=text, description=text)
    compare.add_argument("file", metavar="FILE", help="YAML file of variants, as those in configs/compare")
    compare.add_argument("--output", metavar="DIR",
                         help="folder of runs, tables and report.html (default: runs/compare/<name of FILE and R>)")
    compare.add_argument("--rate", metavar="R", help="link rate, as in 200mbit, in place of FILE's; phases at full speed are left out")
    compare.add_argument("--dry-run", action="store_true", help="show the runs and their commands; start nothing")
    compare.add_argument("--report-only", action="store_true", help="make no run; report those that are finished")
    compare.set_defaults(action=_compare)


def _add_doctor(commands: Any) -> None:
    text = "look for what would keep a job from running here, or on all of its nodes; exit status 1 if something would"
    doctor = commands.add_parser("doctor", help=text, description=text)
    doctor.add_argument("config", metavar="CONFIG", nargs="?", help="YAML configuration, to check its degrees, data and disk too")
    doctor.add_argument("--set", dest="overrides", metavar="KEY.PATH=VALUE", action="append", default=[], help="override one key of CONFIG")
    doctor.add_argument("--ranks", type=_positive, metavar="N", help="ranks of the job, if no rank table says it")
    doctor.add_argument("--rank-table", metavar="FILE", help="Ascend rank table (default: $RANK_TABLE_FILE)")
    doctor.add_argument("--server", metavar="NAME", help="this machine's server_id in it (default: found by its address)")
    doctor.add_argument("--nodes-file", metavar="FILE", help="the nodes, as for train_msrun.sh (default: the rank table's servers)")
    doctor.add_argument("--port", type=_positive, metavar="P", help="port on which the ranks are to meet on node 0")
    doctor.add_argument("--ssh", action="store_true", help="look at all other nodes too, and compare them with this one")
    doctor.add_argument("--ssh-command", metavar="C", default="ssh -o BatchMode=yes -o ConnectTimeout=10",
                        help="how to reach them (default: %(default)s)")
    doctor.add_argument("--env-file", metavar="FILE", help="shell file to read on them first, such as CANN's set_env.sh")
    doctor.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    doctor.set_defaults(action=_doctor)


def _add_plan(commands: Any) -> None:
    plan = _add_command(commands, "plan", "memory, bytes and time of a job before it runs; needs no device and no MindSpore", _plan)
    plan.add_argument("--cluster", metavar="FILE", help="YAML file of nodes and hardware (pangu_sigma/tools/plan/cluster.py)")
    plan.add_argument("--nodes", type=_positive, metavar="N", help="nodes (default: the fewest that hold all experts)")
    plan.add_argument("--devices-per-node", type=_positive, metavar="M", help="ranks a node (default: parallel.ranks_per_node)")
    plan.add_argument("--hardware", metavar="NAME", help="file of configs/hardware, or a path (default: by runtime.device)")
    plan.add_argument("--tokens", type=_count, metavar="N", help="say how many days N tokens take, as in 329e9 (default: the run's)")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument("--sweep", action="append", default=[], metavar="AXIS[=V,V]",
                      help="plan all values of ep, tp, dp, capacity or router, and show the Pareto front; may be repeated")


def _count(text: str) -> int:
    value = float(text)
    if not 1.0 <= value <= 1e18:
        raise ValueError
    return int(value)


def _positive(text: str) -> int:
    # argparse turns ValueError into its own message, which names the option and the value.
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _sizes(text: str) -> Tuple[int, ...]:
    return tuple(_positive(word) for word in text.split(","))


def _rate(text: str) -> float:
    """Bits a second of a rate as `tc` spells it."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([kmg])bit", text)
    if found is None:
        raise ValueError
    return float(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2]]


_positive.__name__ = "positive integer"
_count.__name__ = "number, as in 329e9,"
_sizes.__name__ = "list of positive integers, as in 64,256,"
_rate.__name__ = "rate, as in 200mbit,"


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings speak to its developers; its errors still show
    under_msrun = "MS_ROLE" in os.environ
    _join_launcher()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return _be_scheduler(options) if options.action in _BY_RANKS else SUCCESS
    if under_msrun and options.action not in _BY_RANKS:
        raise InputError(f"{options.command} runs as one process, but MS_ROLE is set; expected to run without msrun")
    config = load_config(options.config, options.overrides) if getattr(options, "config", None) else Config()
    status: int = options.action(config, options)
    return status


def _prepare(config: Config, options: argparse.Namespace) -> int:
    check_paths(config)
    from pangu_sigma.data.prepare import prepare

    prepare(config)
    return SUCCESS


def _train(config: Config, options: argparse.Namespace) -> int:
    config = _of_this_rank(config)
    from pangu_sigma.train.run import train

    return train(config)


def _of_this_rank(config: Config) -> Config:
    """The configuration, checked for the job that this process is a rank of."""
    launch = read_launch()
    config = launch.fit(config)
    validate(config, launch.world_size)
    return config


def _eval(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.train.evaluate import evaluate, on_one_process

    config = on_one_process(config)
    validate(config, 1)
    return evaluate(config)


def _bench_step(config: Config, options: argparse.Namespace) -> int:
    validate(config, 1)
    from pangu_sigma.tools.bench import bench_step

    return bench_step(config)


def _bench_all_to_all(config: Config, options: argparse.Namespace) -> int:
    if not is_worker():
        raise InputError("bench all-to-all measures ranks of a job; expected to run under msrun, as scripts/train_msrun.sh "
                         "--bench all-to-all does, or with a rank table")
    config = _of_this_rank(config)
    from pangu_sigma.tools.bench_all_to_all import bench_all_to_all

    return bench_all_to_all(config, options.tokens, options.rate)


def _bench_router(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.bench_router import bench_router

    return bench_router(config)


_BY_RANKS = (_train, _bench_all_to_all)  # what msrun may start


def _show_config(config: Config, options: argparse.Namespace) -> int:
    validate(config, options.ranks)
    value: Any = to_dict(config)
    for name in options.key.split(".") if options.key else []:
        if not isinstance(value, dict) or name not in value:
            raise InputError(f"--key {options.key}: no such key")
        value = value[name]
    text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    print(text.removesuffix("...\n").rstrip("\n"))  # YAML ends a document that is one plain value with dots
    return SUCCESS


def _summary(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.summary import summarise_runs

    summarise_runs(options.runs, options.output)
    return SUCCESS


def _compare(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.compare.command import compare
    from pangu_sigma.tools.compare.runner import RunFailed

    try:
        compare(options.file, options.output, options.rate, options.dry_run, options.report_only)
    except RunFailed as failure:  # reported by its own command's line, whose status becomes this command's
        print(f"pangu-sigma: error: {failure}", file=sys.stderr, flush=True)
        return failure.status
    return SUCCESS


def _doctor(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.doctor import Request, doctor

    pairs = (("--rank-table", options.rank_table), ("--nodes-file", options.nodes_file), ("--ranks", options.ranks),
             ("--port", options.port))
    words = [*([options.config] if options.config else []), *(word for text in options.overrides for word in ("--set", text)),
             *(str(word) for name, value in pairs if value is not None for word in (name, value))]
    request = Request(options.rank_table, options.server, options.nodes_file, options.ranks, options.port,
                      options.ssh_command if options.ssh else None, options.env_file, options.json, tuple(words))
    return doctor(config if options.config else None, request)


def _plan(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.plan.command import plan

    plan(config, options.cluster, options.nodes, options.devices_per_node, options.hardware, options.tokens, options.json, options.sweep)
    return SUCCESS


def _be_scheduler(options: argparse.Namespace) -> int:
    """msrun's extra process. The tcp mesh has no use for it; with hccl MindSpore forms its cluster around it."""
    try:
        config = load_config(options.config, options.overrides)
    except InputError:
        return SUCCESS  # every rank reports the same
    if resolve_runtime(config).runtime.backend == "hccl":
        from mindspore.communication import init

        init()  # returns, or exits with status 0, when all ranks have left the cluster
    return SUCCESS


def _join_launcher() -> None:
    """Under the launcher: says which process is which rank, and ties this process's life to that of what started it."""
    folder = os.environ.get("LOCMOE_LOG_DIR")
    if not folder or not (is_worker() or "MS_ROLE" in os.environ):
        return
    if is_worker():
        append_line(Path(folder) / "workers.log", rank_name(), str(os.getpid()))
    _end_with_parent()


def _end_with_parent() -> None:
    """Asks Linux to end this process when its launcher dies: killed outright, msrun leaves its workers behind."""
    set_parent_death_signal = 1
    try:
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    except (OSError, AttributeError):  # another system: the mesh still notices that the parent is gone
        pass
