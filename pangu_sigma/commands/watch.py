"""The command lines of `pangu-sigma report`, `watch` and `profile`: what runs did, and do."""

import argparse
from pathlib import Path
from typing import Any

from pangu_sigma.commands.parts import add_plain
from pangu_sigma.config.schema import Config


def add_watch(commands: Any) -> None:
    """Adds the three commands to the program's parser."""
    text = "one HTML page of some runs, with compare's figures; with --follow while they go on"
    report = add_plain(commands, "report", text, _report)
    report.add_argument("runs", metavar="RUN", nargs="+", help="run directory, also of a run that goes on; ratios are to the first")
    report.add_argument("--output", metavar="FILE", help="the page (default: report.html in RUN, or in the folder that the RUNs share)")
    report.add_argument("--follow", action="store_true", help="write it again every few seconds until all runs are finished")
    text = "a run in the terminal, 80 columns wide, until it is finished; printed once if the output is no terminal"
    watch = add_plain(commands, "watch", text, _watch)
    watch.add_argument("run", metavar="RUN", help="run directory")
    profile = add_plain(commands, "profile", "where the time of a run's profiled steps went, by rank (train.profile)", _profile)
    profile.add_argument("run", metavar="RUN", help="run directory, or a folder of MindSpore's traces (rank_*_ascend_ms)")


def _report(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.watch.report import report

    report(options.runs, options.output, options.follow)
    return 0


def _watch(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.watch.terminal import watch

    watch(options.run)
    return 0


def _profile(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.tools.profile import table

    print("\n".join(table(Path(options.run))))
    return 0
