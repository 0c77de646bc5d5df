"""`pangu-sigma prepare`, `train` and `config`: a configuration, and what becomes of it."""

import argparse
from typing import Any

import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.commands.parts import add_command, of_this_rank, positive, run_by_ranks
from pangu_sigma.config.load import to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import check_paths, validate
from pangu_sigma.reporting import SUCCESS


def add_training(commands: Any) -> None:
    """Adds the three commands to the program's parser."""
    add_command(commands, "prepare", "train the tokenizer and write the data folder", _prepare)
    run_by_ranks(add_command(commands, "train", "train, alone or as a rank under msrun", _train))
    config = add_command(commands, "config", "check a configuration and print it with all defaults", _show_config)
    config.add_argument("--ranks", type=positive, default=1, metavar="N", help="check it for N ranks (default 1)")
    config.add_argument("--key", metavar="PATH", help="print the value of this key only, as in train.output_dir")


def _prepare(config: Config, options: argparse.Namespace) -> int:
    check_paths(config)
    from pangu_sigma.data.prepare import prepare

    prepare(config)
    return SUCCESS


def _train(config: Config, options: argparse.Namespace) -> int:
    config = of_this_rank(config)
    from pangu_sigma.train.run import train

    return train(config)


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
