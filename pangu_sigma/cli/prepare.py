"""`pangu-sigma prepare`: texts become a data folder."""

import argparse
from typing import Any

from pangu_sigma.cli.arguments import add_command, tells_on_stdout
from pangu_sigma.config.check_data import check_data
from pangu_sigma.config.check_run import check_paths
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS


def add_prepare(commands: Any) -> None:
    """Adds the command to the program's parser."""
    tells_on_stdout(add_command(commands, "prepare", "train the tokenizer and write the data folder", _prepare))


def _prepare(config: Config, options: argparse.Namespace) -> int:
    check_data(config)
    check_paths(config)
    from pangu_sigma.data.prepare import prepare

    prepare(config)
    return SUCCESS
