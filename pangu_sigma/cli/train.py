"""`pangu-sigma train`: a configuration becomes a run."""

import argparse
from typing import Any

from pangu_sigma.checkpoint.locate import TRAINING
from pangu_sigma.cli.arguments import add_command, of_this_rank, run_by_ranks, tells_on_stdout
from pangu_sigma.config.schema import Config


def add_train(commands: Any) -> None:
    """Adds the command to the program's parser."""
    parser = add_command(commands, "train", "train, alone or as a rank under msrun", _train, TRAINING)
    run_by_ranks(parser)
    tells_on_stdout(parser)


def _train(config: Config, options: argparse.Namespace) -> int:
    config = of_this_rank(config)
    from pangu_sigma.train.run import train

    return train(config)
