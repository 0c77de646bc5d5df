"""`pangu-sigma compare`: what it does, in order."""

import shlex
from pathlib import Path
from typing import Optional

from locmoe_ops.errors import InputError
from pangu_sigma.tools.compare.collect import check_tables, collect, write_tables
from pangu_sigma.tools.compare.plan import Plan, load_plan
from pangu_sigma.tools.compare.report import check_report, write_report
from pangu_sigma.tools.compare.runner import command_of, folder_of, is_finished, run_all


def compare(file: str, output: Optional[str] = None, rate: Optional[str] = None, dry_run: bool = False, report_only: bool = False) -> None:
    """Makes the runs of a comparison that are not made yet, then writes `summary.json`, `runs.csv` and `report.html`.

    Args:
        file: the comparison, as plan.py describes it.
        output: folder for runs and results; None: runs/compare/<the file's name, and the rate if one is given>.
        rate: see `load_plan`.
        dry_run: only print the runs in their order, each with its command.
        report_only: make no run; report those that are finished.

    Raises:
        InputError: the file, a run's configuration or the folder is not usable; with `report_only`: no run is finished.
        RunFailed: a run failed; what was finished before stands.
    """
    plan = load_plan(file, rate)
    folder = Path(output) if output else Path("runs") / "compare" / (Path(file).stem + (f"_{rate}" if rate else ""))
    if dry_run:
        return _show(plan, folder)
    check_tables(folder)
    check_report(folder)
    if not report_only:
        run_all(plan, folder)
    collection = collect(plan, folder)
    if not collection.runs:
        raise InputError(f"--report-only: no run of {file} is finished in {folder}; expected the --output of an earlier comparison")
    write_tables(collection, folder)
    if collection.warning():
        print(f"note: {collection.warning()}", flush=True)
    print(f"report: {write_report(collection, folder)}", flush=True)


def _show(plan: Plan, output: Path) -> None:
    for number, run in enumerate(plan.runs, start=1):
        folder = folder_of(output, run)
        state = "finished" if is_finished(run, folder) else "to do"
        print(f"[{number}/{len(plan.runs)}] {run.name} ({state})\n  {shlex.join(command_of(run, plan.base, folder))}")
