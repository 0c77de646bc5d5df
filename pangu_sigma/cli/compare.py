"""`pangu-sigma compare`: variants of one configuration, trained one after another and reported."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.cli.arguments import add_plain, tells_on_stdout
from pangu_sigma.cli.report import add_figures, figure_formats, save_figures
from pangu_sigma.config.schema import Config
from pangu_sigma.errors import RunFailed
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.reporting import SUCCESS
from pangu_sigma.runtime.router_files import add_router_option

if TYPE_CHECKING:
    from pangu_sigma.report.comparison import Comparison


def add_compare(commands: Any) -> None:
    """Adds the command to the program's parser."""
    compare = add_plain(
        commands, "compare", "train variants side by side and write a report; resumes where it was cut off", _compare
    )
    compare.add_argument("file", metavar="FILE", help="YAML file of variants, as those in configs/compare")
    compare.add_argument(
        "--output",
        metavar="DIR",
        help="folder of runs, tables and report.html (default: runs/compare/<name of FILE and R>)",
    )
    compare.add_argument(
        "--rate", metavar="R", help="link rate, as in 200mbit, in place of FILE's; phases at full speed are left out"
    )
    compare.add_argument("--dry-run", action="store_true", help="show the runs and their commands; start nothing")
    compare.add_argument("--report-only", action="store_true", help="make no run; report those that are finished")
    add_figures(compare)
    add_router_option(compare)
    tells_on_stdout(compare)


def _compare(config: Config, options: argparse.Namespace) -> int:
    """Makes the runs that are not made yet, then writes `summary.json`, `runs.csv` and `report.html`."""
    from pangu_sigma.compare.comparison import load_plan
    from pangu_sigma.compare.runner import run_all
    from pangu_sigma.report.collect import check_tables, collect, write_tables
    from pangu_sigma.report.report import check_report, write_report

    formats = figure_formats(options)
    plan = load_plan(options.file, options.rate)
    name = Path(options.file).stem + (f"_{options.rate}" if options.rate else "")
    folder = Path(options.output) if options.output else Path("runs") / "compare" / name
    if options.dry_run:
        _show(plan, folder)
        return SUCCESS
    check_tables(folder)
    check_report(folder)
    if not options.report_only:
        try:
            run_all(plan, folder)
        except RunFailed as failure:  # reported by its own command's line, whose status becomes this command's
            log.error("%s", failure)
            return failure.status
    collection = collect(plan, folder)
    if not collection.runs:
        raise InputError(
            f"--report-only: no run of {options.file} is finished in {folder}; expected the --output of an earlier "
            "comparison"
        )
    write_tables(collection, folder)
    if collection.warning():
        log.warning("%s", collection.warning())
    print(f"report: {write_report(collection, folder)}", flush=True)
    save_figures(collection, options, formats)
    return SUCCESS


def _show(plan: "Comparison", output: Path) -> None:
    from pangu_sigma.compare.runner import command_of
    from pangu_sigma.report.comparison import folder_of, is_finished

    for number, run in enumerate(plan.runs, start=1):
        folder = folder_of(output, run)
        state = "finished" if is_finished(run, folder) else "to do"
        print(f"[{number}/{len(plan.runs)}] {run.name} ({state})\n  {_in_lines(command_of(run, plan.base, folder))}")


def _in_lines(words: Sequence[str]) -> str:
    """A command as a shell reads it, with a line for each of its settings."""
    starts = [0, *(place for place, word in enumerate(words) if word == "--set")]
    ends = [*starts[1:], len(words)]
    return " \\\n    ".join(shlex.join(words[start:end]) for start, end in zip(starts, ends))
