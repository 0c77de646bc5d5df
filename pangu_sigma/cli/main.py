"""The `pangu-sigma` command: alone, or as every rank of a job that msrun started.

Exit status: 0 success; 2 bad input, with one line on stderr; 1 anything else; 130 interrupted; 141 nobody reads its
output any more. Nothing heavy is imported before it is needed: `--help` and most bad input are answered without
MindSpore.
"""

import argparse
import errno
import os
import select
import sys
from pathlib import Path
from typing import Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.locate import SETTINGS, read_configuration
from pangu_sigma.cli.arguments import Parser, ShowVersion
from pangu_sigma.cli.audit import add_audit
from pangu_sigma.cli.bench import add_bench
from pangu_sigma.cli.ckpt import add_ckpt
from pangu_sigma.cli.compare import add_compare
from pangu_sigma.cli.completion import PrintCompletion
from pangu_sigma.cli.config import add_config
from pangu_sigma.cli.doctor import add_doctor
from pangu_sigma.cli.eval import add_eval
from pangu_sigma.cli.export import add_export
from pangu_sigma.cli.generate import add_generate
from pangu_sigma.cli.launch import add_launch
from pangu_sigma.cli.plan import add_plan
from pangu_sigma.cli.prepare import add_prepare
from pangu_sigma.cli.profile import add_profile
from pangu_sigma.cli.report import add_report
from pangu_sigma.cli.summary import add_summary
from pangu_sigma.cli.trace import add_trace
from pangu_sigma.cli.train import add_train
from pangu_sigma.cli.watch import add_watch
from pangu_sigma.config.ascend import has_devices, resolve_runtime
from pangu_sigma.config.schema import Config
from pangu_sigma.errors import OutputNotWritten
from pangu_sigma.runtime.launch import check_launch, is_scheduler, is_worker, rank_name, why_a_rank
from pangu_sigma.runtime.messages import set_log_level, set_up_messages
from pangu_sigma.runtime.processes import end_with_parent
from pangu_sigma.runtime.reporting import SUCCESS, append_line, make_streams_lenient, report_error
from pangu_sigma.runtime.router_files import use_router_files

ADD_COMMANDS = (
    add_prepare,
    add_train,
    add_launch,
    add_config,
    add_eval,
    add_generate,
    add_export,
    add_summary,
    add_trace,
    add_compare,
    add_report,
    add_watch,
    add_profile,
    add_bench,
    add_doctor,
    add_plan,
    add_audit,
    add_ckpt,
)
INTERRUPTED = 130
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED_PIPE = 141  # what a shell reports of a program that this ends by its signal


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command (`sys.argv` if None) and returns its exit status; errors are reported, never raised."""
    make_streams_lenient()
    try:
        return _run_reported(arguments)
    finally:
        set_up_messages("info")  # for whoever goes on in this process


def _run_reported(arguments: Optional[Sequence[str]]) -> int:
    try:
        try:
            return _run(_parser().parse_args(arguments))
        finally:
            sys.stdout.flush()  # here, while a reader that has gone can still be told from an error
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the outermost handler)
        if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
            error = InputError(
                f"{error.object!a} cannot be spelled in {error.encoding}, the encoding of file names here; "
                "expected PYTHONUTF8=1, or a locale of UTF-8"
            )
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            try:
                sys.stdout.flush()
            except OSError:  # drop what it still holds, or Python tries to write it once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            what, reason = error.filename or "what the command writes", str(error.strerror).lower()
            error = OutputNotWritten(f"{what} cannot be written ({reason}); expected more room")
        return CLOSED_PIPE if isinstance(error, BrokenPipeError) and _nobody_reads() else report_error(error)


def _nobody_reads() -> bool:
    """Whether it is this program's output that is broken: its reader, such as `head`, has seen enough."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still wants to write at its end
    return True


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="pangu-sigma", description="PanGu-Sigma with LocMoE routing on MindSpore")
    parser.set_defaults(by_ranks=False, starts_ranks=False, messages_on_stdout=False, use=SETTINGS)
    parser.add_argument("--version", action=ShowVersion, help="show the versions of this program, MindSpore and Python")
    parser.add_argument(
        "--print-completion", action=PrintCompletion, help="print what bash or zsh needs to complete this command"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in ADD_COMMANDS:
        add(commands)
    return parser


def _run(options: argparse.Namespace) -> int:
    set_up_messages(options.log_level, options.messages_on_stdout)
    if options.starts_ranks:  # and is none, whatever a shell has left over of another job
        return int(options.action(Config(), options))
    set_log_level(has_devices())
    logs = os.environ.get("LOCMOE_LOG_DIR")
    if logs and (is_worker() or is_scheduler()):
        if is_worker():  # the launcher learns which process is which rank
            append_line(Path(logs) / "workers.log", rank_name(), str(os.getpid()))
        end_with_parent()  # killed outright, msrun leaves its workers behind
    check_launch(options.command, options.by_ranks)
    if is_scheduler():
        return _be_scheduler(options)
    status: int = options.action(_read_config(options), options)
    return status


def _read_config(options: argparse.Namespace) -> Config:
    """The configuration, if the command takes one, with the routers that the user brings along."""
    use_router_files(getattr(options, "router_files", ()))
    given = getattr(options, "config", None)
    return read_configuration(given, options.overrides, options.use) if given else Config()


def _be_scheduler(options: argparse.Namespace) -> int:
    """msrun's extra process. The tcp mesh has no use for it; with hccl MindSpore forms its cluster around it."""
    try:
        config = _read_config(options)
    except InputError:
        if why_a_rank():
            raise
        return SUCCESS  # every rank reports the same
    if resolve_runtime(config).runtime.backend == "hccl":
        from mindspore.communication import init

        init()  # returns, or exits with status 0, when all ranks have left the cluster
    elif why_a_rank() and "LOCMOE_MESH_SECRET" not in os.environ:
        raise InputError(f"{options.command}: the scheduler of a job on CPU has nothing to do{why_a_rank()}")
    return SUCCESS
