"""`pangu-sigma --print-completion SHELL`: what a shell needs to complete the command line, made by shtab.

pangu-sigma --print-completion bash > ~/.local/share/bash-completion/completions/pangu-sigma
pangu-sigma --print-completion zsh > FOLDER/_pangu-sigma    # a folder of $fpath
"""

import argparse
from typing import Any, Iterator, NoReturn

from locmoe_ops.errors import InputError

SHELLS = ("bash", "zsh")
# What an argument of such a name is completed with.
FILES = ("CONFIG", "FILE", "PATH", "RUN", "SOURCE", "TARGET")
FOLDERS = ("DIR", "FOLDER")


class PrintCompletion(argparse.Action):
    """Prints the completion of the whole program for a shell, and ends it. shtab is imported only then."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "choices": SHELLS, "metavar": "SHELL"})

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *rest: Any) -> NoReturn:
        try:
            import shtab
        except ModuleNotFoundError:
            raise InputError(
                "--print-completion: found no package shtab; expected it installed (pip install 'shtab>=1.7')"
            ) from None
        for action in every_argument(parser):
            for names, what in ((FILES, shtab.FILE), (FOLDERS, shtab.DIRECTORY)):
                if action.metavar in names:
                    action.complete = what  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell=rest[0]))
        parser.exit()


def every_argument(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of the commands below it."""
    for action in parser._actions:  # argparse has no other list of them
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from every_argument(inner)
