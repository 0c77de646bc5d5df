"""What the commands' arguments are made of: the parser, a command that takes a configuration, types of values."""

import argparse
import re
from typing import Any, Callable, NoReturn, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma import __version__
from pangu_sigma.checkpoint.locate import MODEL, SETTINGS, TRAINING
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate
from pangu_sigma.runtime.launch import read_launch, why_a_rank
from pangu_sigma.runtime.messages import LEVEL_VARIABLE, LEVELS
from pangu_sigma.runtime.router_files import add_router_option
from pangu_sigma.runtime.versions import version_line

Action = Callable[[Config, argparse.Namespace], int]
_SOURCES = {
    SETTINGS: ("CONFIG", "YAML configuration file, or a run or checkpoint folder: its own"),
    TRAINING: ("CONFIG", "YAML configuration file, or a run folder: its own"),
    MODEL: ("RUN", "run folder (its newest checkpoint), checkpoint folder, or YAML configuration of a run"),
}


class Parser(argparse.ArgumentParser):
    """argparse prints its usage and exits; here a wrong argument is bad input like any other."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Leaves what follows a first `--` alone, for a command that hands it on (`takes_further`)."""
        if not self.get_default("takes_further"):
            return super().parse_known_args(args, namespace)
        words = list(args)
        place = words.index("--") if "--" in words else len(words)
        found, unknown = super().parse_known_args(words[:place], namespace)
        found.further = words[place + 1 :]
        return found, unknown

    def error(self, message: str) -> NoReturn:
        option = re.fullmatch(r"argument (--[a-z-]+): expected one argument", message)
        if option:  # argparse takes a value that begins with a dash for another option
            message += f"; one that begins with a dash is given as {option[1]}=-NAME"
        raise InputError(f"{message} (see {self.prog} --help)")


class ShowVersion(argparse.Action):
    """Prints the versions and ends the program; they are looked up only then."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> NoReturn:
        print(version_line(__version__))
        parser.exit()


class RunByRanks(argparse.Action):
    """A flag with which msrun may start the command, as every rank of a job (see `run_by_ranks`)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, default=False, **settings)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *rest: Any) -> None:
        setattr(namespace, self.dest, True)
        namespace.by_ranks = True


class _OldName(argparse.Action):
    """An option that has another name now: it is refused, with that name."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *rest: Any) -> NoReturn:
        raise InputError(f"{self.option_strings[0]} is called {self.const} now; expected that")


def refuse_old_name(command: argparse.ArgumentParser, old: str, new: str) -> None:
    """Has `command` refuse the option `old` with a line that names `new`, of which `--help` alone speaks."""
    command.add_argument(old, action=_OldName, const=new, dest="old_name", nargs="?", help=argparse.SUPPRESS)


def add_command(commands: Any, name: str, text: str, action: Action, use: str = SETTINGS) -> argparse.ArgumentParser:
    """Adds a command that takes a configuration and overrides, and returns its parser, which takes its other arguments.

    Args:
        commands: what `argparse.ArgumentParser.add_subparsers` or `add_family` returned.
        name: the word on the command line.
        text: what it does, for `--help`.
        action: gets the configuration, with the overrides in it, and all options; returns the exit status.
        use: what the configuration is for, see `read_configuration`: a command of MODEL or SETTINGS takes a run or a
            checkpoint as well.
    """
    command = add_plain(commands, name, text, action)
    word, what = _SOURCES[use]
    command.set_defaults(use=use)
    command.add_argument("config", metavar=word, help=what)
    add_overrides(command)
    return command


def add_plain(commands: Any, name: str, text: str, action: Action) -> argparse.ArgumentParser:
    """Adds a command whose arguments are all its own, and returns its parser.

    Args:
        commands, name, text: as of `add_command`.
        action: gets the default configuration and all options; returns the exit status.
    """
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(action=action)
    command.add_argument(
        "--log-level",
        choices=LEVELS,
        help=f"least messages that are shown and logged (default: info, or as {LEVEL_VARIABLE} says)",
    )
    return command


def add_family(commands: Any, name: str, text: str) -> Any:
    """Adds a word that others follow, as in `ckpt verify`; what is returned takes them as `commands`.

    Args:
        commands, name, text: as of `add_command`.
    """
    return commands.add_parser(name, help=text, description=text).add_subparsers(
        dest=name, metavar="WHAT", required=True
    )


def add_overrides(command: argparse.ArgumentParser, what: str = "one key") -> None:
    """Adds what goes with a configuration: `--set`, and `--router-file`."""
    command.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        action="append",
        default=[],
        help=f"override {what}; may be repeated",
    )
    add_router_option(command)


def tells_on_stdout(command: argparse.ArgumentParser) -> None:
    """Says that what the command prints are messages, so that these may go to stdout; of others it is output alone."""
    command.set_defaults(messages_on_stdout=True)


def run_by_ranks(command: argparse.ArgumentParser) -> None:
    """Says that msrun may start the command, as every rank of a job; all others run as one process."""
    command.set_defaults(by_ranks=True)


def of_this_rank(config: Config) -> Config:
    """The configuration, checked for the job that this process is a rank of."""
    try:
        launch = read_launch()
        config = launch.fit(config)
        validate(config, launch.world_size)
    except InputError as error:
        raise InputError(f"{error}{why_a_rank()}") from None
    return config


# argparse turns a ValueError into its own message, which names the option, the value and the function's name.


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def from_zero(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def count(text: str) -> int:
    value = float(text)
    if not 1.0 <= value <= 1e18:
        raise ValueError
    return int(value)


def sizes(text: str) -> Tuple[int, ...]:
    return tuple(positive(word) for word in text.split(","))


def rate(text: str) -> float:
    """Bits a second of a rate as `tc` spells it."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([kmg])bit", text)
    if found is None:
        raise ValueError
    return float(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2]]


positive.__name__ = "positive integer"
from_zero.__name__ = "integer from 0"
count.__name__ = "number, as in 329e9,"
sizes.__name__ = "list of positive integers, as in 64,256,"
rate.__name__ = "rate, as in 200mbit,"
