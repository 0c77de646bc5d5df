"""`pangu-sigma summary`: finished runs side by side."""

import argparse
from typing import Any

from pangu_sigma.checkpoint.locate import runs_named
from pangu_sigma.cli.arguments import add_plain
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS


def add_summary(commands: Any) -> None:
    """Adds the command to the program's parser."""
    summary = add_plain(commands, "summary", "compare finished runs in a table", _summary)
    summary.add_argument(
        "runs", metavar="RUN", nargs="+", help="folder of a finished run, one a router, or a folder of such runs"
    )
    summary.add_argument("--output", metavar="FILE", help="also write the runs' metrics to this JSON file")


def _summary(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.report.summary import summarise_runs

    summarise_runs(runs_named(options.runs), options.output)
    return SUCCESS
