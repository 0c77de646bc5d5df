"""`pangu-sigma report`: one HTML page of some runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.locate import runs_named
from pangu_sigma.cli.arguments import add_plain
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS

if TYPE_CHECKING:
    from pangu_sigma.report.collect import Collection


def add_report(commands: Any) -> None:
    """Adds the command to the program's parser."""
    text = "one HTML page of some runs, with compare's figures; with --follow while they continue"
    report = add_plain(commands, "report", text, _report)
    report.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run folder, also of an unfinished run, or a folder of runs: all of them; ratios are to the first",
    )
    report.add_argument(
        "--output", metavar="FILE", help="the page (default: report.html in RUN, or in the folder that the RUNs share)"
    )
    report.add_argument(
        "--follow", action="store_true", help="write it again every few seconds until all runs are finished"
    )
    add_figures(report)


def add_figures(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ask for figures in files."""
    parser.add_argument(
        "--figures",
        metavar="DIR",
        help="also write each figure into DIR, as wide as a column of a paper, with a CSV file",
    )
    parser.add_argument(
        "--format", metavar="FORMATS", help="of --figures: pdf, svg, png, or several with commas between (default: pdf)"
    )


def figure_formats(options: argparse.Namespace) -> Tuple[str, ...]:
    """Formats of the figures that are asked for; none where none are. Raises InputError: as `check_formats`."""
    from pangu_sigma.report.figure_files import check_formats

    if options.figures is None:
        if options.format is not None:
            raise InputError("--format is of files of figures; expected --figures DIR with it")
        return ()
    return check_formats("pdf" if options.format is None else options.format)


def save_figures(data: "Collection", options: argparse.Namespace, formats: Sequence[str]) -> None:
    """Writes the figures that are asked for, and says so."""
    from pangu_sigma.report.figure_files import write_figures

    if formats:
        written = write_figures(data, Path(options.figures), formats)
        print(f"figures: {len(written)} files and their tables in {options.figures}", flush=True)


def _report(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.report.runs import read_runs, report

    formats = figure_formats(options)
    runs = runs_named(options.runs)
    report(runs, options.output, options.follow)
    save_figures(read_runs(runs), options, formats)
    return SUCCESS
