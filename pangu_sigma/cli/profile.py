"""`pangu-sigma profile`: where the time of a run's profiled steps went."""

import argparse
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.locate import run_named
from pangu_sigma.cli.arguments import add_plain
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS


def add_profile(commands: Any) -> None:
    """Adds the command to the program's parser."""
    profile = add_plain(
        commands, "profile", "where the time of a run's profiled steps went, by rank (train.profile)", _profile
    )
    profile.add_argument("run", metavar="RUN", help="run folder, or a folder of MindSpore's traces (rank_*_ascend_ms)")


def _profile(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.report.step_trace import profile_table

    print("\n".join(profile_table(Path(run_named(options.run)))))
    return SUCCESS
