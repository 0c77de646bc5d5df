"""`pangu-sigma compare` and `summary`: runs side by side."""

import argparse
import sys
from typing import Any

from pangu_sigma.commands.parts import add_plain
from pangu_sigma.config.schema import Config
from pangu_sigma.reporting import SUCCESS
from pangu_sigma.router_files import add_router_option


def add_compare(commands: Any) -> None:
    """Adds both commands to the program's parser."""
    summary = add_plain(commands, "summary", "compare finished runs in a table", _summary)
    summary.add_argument("runs", metavar="RUN_FOLDER", nargs="+", help="run directory that holds a summary.json, one a router")
    summary.add_argument("--output", metavar="FILE", help="also write the runs' metrics to this JSON file")
    compare = add_plain(commands, "compare", "train variants side by side and write a report; goes on where it was cut off", _compare)
    compare.add_argument("file", metavar="FILE", help="YAML file of variants, as those in configs/compare")
    compare.add_argument("--output", metavar="DIR",
                         help="folder of runs, tables and report.html (default: runs/compare/<name of FILE and R>)")
    compare.add_argument("--rate", metavar="R", help="link rate, as in 200mbit, in place of FILE's; phases at full speed are left out")
    compare.add_argument("--dry-run", action="store_true", help="show the runs and their commands; start nothing")
    compare.add_argument("--report-only", action="store_true", help="make no run; report those that are finished")
    add_router_option(compare)


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
