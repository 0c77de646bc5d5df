"""`pangu-sigma trace`: what routing traces show."""

import argparse
from typing import Any

from pangu_sigma.cli.arguments import add_plain
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS


def add_trace(commands: Any) -> None:
    """Adds the command to the program's parser."""
    trace = add_plain(commands, "trace", "load, domains and nodes of routing traces, and how alike two are", _trace)
    trace.add_argument(
        "traces", metavar="FILE", nargs="+", help="trace that eval --trace wrote; each further one is compared with it"
    )
    trace.add_argument("--json", action="store_true", help="print the numbers as JSON")


def _trace(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.report.traces import show_traces

    show_traces(options.traces, options.json)
    return SUCCESS
