"""`pangu-sigma report`: one HTML page of some runs."""

import argparse
from typing import Any

from pangu_sigma.cli.arguments import add_plain
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS


def add_report(commands: Any) -> None:
    """Adds the command to the program's parser."""
    text = "one HTML page of some runs, with compare's figures; with --follow while they continue"
    report = add_plain(commands, "report", text, _report)
    report.add_argument(
        "runs", metavar="RUN", nargs="+", help="run directory, also of an unfinished run; ratios are to the first"
    )
    report.add_argument(
        "--output", metavar="FILE", help="the page (default: report.html in RUN, or in the folder that the RUNs share)"
    )
    report.add_argument(
        "--follow", action="store_true", help="write it again every few seconds until all runs are finished"
    )


def _report(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.report.runs import report

    report(options.runs, options.output, options.follow)
    return SUCCESS
