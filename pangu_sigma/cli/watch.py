"""`pangu-sigma watch`: a run in the terminal."""

import argparse
from typing import Any

from pangu_sigma.checkpoint.locate import run_named
from pangu_sigma.cli.arguments import add_plain
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS


def add_watch(commands: Any) -> None:
    """Adds the command to the program's parser."""
    text = "a run in the terminal, 80 columns wide, until it is finished; printed once if the output is no terminal"
    watch = add_plain(commands, "watch", text, _watch)
    watch.add_argument("run", metavar="RUN", help="run folder")


def _watch(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.report.terminal import watch

    watch(run_named(options.run))
    return SUCCESS
