"""Routers and dispatchers that a user brings along: files named on the command line or in the environment, never by a
configuration.

A router's file is code. Configurations travel between people, so what they name is not run; what the user types is.
"""

import argparse
import os
from typing import Sequence

from locmoe_ops.dispatch.registry import add_dispatcher_file, declares_dispatcher
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import add_router_file

VARIABLE = "LOCMOE_ROUTER_FILES"


def add_router_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--router-file` to a command."""
    parser.add_argument(
        "--router-file",
        dest="router_files",
        metavar="FILE",
        action="append",
        default=[],
        help=f"Python file of a router or a dispatcher of your own (docs/routers.md, docs/dispatchers.md); may be "
        f"repeated; also from ${VARIABLE}, separated by '{os.pathsep}'",
    )


def use_router_files(named: Sequence[str]) -> None:
    """Adds the routers and dispatchers of the files named and of those in the environment, where the processes that
    this one starts find all of them.

    Raises InputError: see `add_router_file`.
    """
    files = [*filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)), *named]
    for file in files:
        try:
            add = add_dispatcher_file if declares_dispatcher(file) else add_router_file
            add(file)
        except InputError as error:
            if file in named:
                raise
            raise InputError(
                f"environment variable {VARIABLE}: {error}; if it is left over, unset {VARIABLE}"
            ) from None
    if files:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(os.path.abspath(file) for file in files))
