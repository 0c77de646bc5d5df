"""Makes the runs that a plan lists, one after another, and resumes where an earlier attempt was cut off.

A run's folder is OUTPUT/runs/<phase>/<variant>/seed_<n>; its `run.json` says for which settings it was made and how it
ended. A run stands if its summary is whole and was made with the same settings. Any other - of other settings, failed,
cut off - is kept under OUTPUT/earlier.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.errors import RunFailed
from pangu_sigma.metrics.perplexity import DIVERGED
from pangu_sigma.report.comparison import COUNTERS, NOTE, SUMMARY, ComparedRun, Comparison, folder_of, is_finished
from pangu_sigma.runtime.files import write_atomically
from pangu_sigma.runtime.locks import FolderLock
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.processes import end_with_children, end_with_parent, with_this_python
from pangu_sigma.runtime.resources import resource
from pangu_sigma.runtime.strict_json import dumps, read_object

SCRIPTS = resource("scripts")
LOCK_WAIT_S = 20.0  # what is left of a job whose comparison was killed ends within seconds
CommandOf = Callable[[ComparedRun, str, Path], List[str]]


def command_of(run: ComparedRun, base: str, folder: Path) -> List[str]:
    """The shell command of a `run` of the configuration `base`, which writes into `folder`: this machine as one node,
    or as several in network namespaces.
    """
    overrides = [
        word for text in (*run.overrides, f"train.output_dir={json.dumps(str(folder))}") for word in ("--set", text)
    ]
    cluster, train = run.cluster, str(SCRIPTS / "train_msrun.sh")
    if cluster.nodes == 1:
        return ["bash", train, "--ranks-per-node", str(cluster.ranks_per_node), base, *overrides]
    options = ["--nodes", str(cluster.nodes), "--ranks-per-node", str(cluster.ranks_per_node)]
    options += ["--rate", cluster.rate] if cluster.rate else []
    options += ["--pin"] if cluster.pin else []
    options += ["--counters", str(folder / COUNTERS)]
    return ["bash", str(SCRIPTS / "simulate_cluster.sh"), *options, "--", "bash", train, base, *overrides]


def run_all(plan: Comparison, output: Path, command: CommandOf = command_of) -> None:
    """Makes every run that does not stand yet, in the plan's order; says which and how long each took.

    Args:
        plan: the comparison.
        output: its folder.
        command: gives the command of a run, as `command_of`.

    Raises:
        InputError: another comparison is at work in `output`, or a folder there is not of a comparison.
        RunFailed: a run failed, missed its deadline or left no summary; later runs are not started.
    """
    with FolderLock(output, "--output", wait_s=LOCK_WAIT_S) as lock:
        for number, run in enumerate(plan.runs, start=1):
            label, folder = f"[{number}/{len(plan.runs)}] {run.name}", folder_of(output, run)
            if is_finished(run, folder):
                log.info("%s: finished earlier", label)
                continue
            _clear(run, folder, output)
            log.info("%s ...", label)
            seconds = _make(run, folder, command(run, plan.base, folder), plan.run_timeout, lock.descriptor)
            log.info("%s: %.0f s", label, seconds)


def _make(run: ComparedRun, folder: Path, command: Sequence[str], timeout: float, lock: Optional[int]) -> float:
    """Makes one run in an empty folder; returns the seconds it took."""
    folder.mkdir(parents=True, exist_ok=True)
    note: Dict[str, Any] = {"settings": run.settings, "status": "running", "command": list(command)}
    _write_note(folder, note)
    started = time.monotonic()
    failure = _execute(command, folder, timeout, lock)
    if failure and read_object(folder / SUMMARY).get("status") == DIVERGED:  # a result: the variant does not train
        note.update(seconds=time.monotonic() - started, status=DIVERGED, error=failure[1])
        _write_note(folder, note)
        log.info("%s: %s", run.name, failure[1])
        return note["seconds"]
    if failure is None and not read_object(folder / SUMMARY):
        failure = (1, f"ended with status 0 but left no whole {SUMMARY}, see {folder / 'stdout.log'}")
    note.update(
        seconds=time.monotonic() - started, status="failed" if failure else "finished", error=failure and failure[1]
    )
    _write_note(folder, note)
    if failure:
        raise RunFailed(run.name, failure[1], failure[0])
    return note["seconds"]


def _execute(command: Sequence[str], folder: Path, timeout: float, lock: Optional[int]) -> "Optional[tuple[int, str]]":
    """Runs a command with its output in the folder. Returns None, or the exit status and line of its failure."""
    with open(folder / "stdout.log", "wb") as out, open(folder / "stderr.log", "wb") as err:
        # It holds the lock too: should this process be killed, no other comparison starts before what it left has
        # ended.
        held = () if lock is None else (lock,)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=with_this_python(),
            pass_fds=held,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return 1, f"took longer than run_timeout ({timeout:g} s) and was ended, see {folder / 'stdout.log'}"
        finally:
            end_with_children(process)
    if status == 0:
        return None
    lines = (folder / "stderr.log").read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.rpartition("\r")[2].strip() for line in lines if line.strip()]
    marked = [line.partition("error: ")[2] for line in lines if "error: " in line]
    how = f"ended with status {status}" if status > 0 else f"ended with signal {-status}"
    last = how + (f": {lines[-1]}" if lines else "") + f", see {folder / 'stdout.log'}"
    return max(status, 1), marked[0] if marked else last


# ---- files


def _clear(run: ComparedRun, folder: Path, output: Path) -> None:
    """Makes way for a run that does not stand: nothing is removed."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    note = read_object(folder / NOTE)
    if not note:
        raise InputError(f"--output: {folder} holds files, but no {NOTE} of a comparison; expected another folder")
    whole = note.get("settings") != run.settings and read_object(folder / SUMMARY)
    number = 1
    while os.path.lexists(aside := output / "earlier" / run.name / str(number)):
        number += 1
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, aside)
    state = "made with other settings" if whole else "not finished"
    log.info("%s was %s; it is now in %s", run.name, state, aside)


def _write_note(folder: Path, note: Dict[str, Any]) -> None:
    write_atomically(folder / NOTE, dumps(note, indent=1) + "\n")
