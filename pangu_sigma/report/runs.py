"""Run folders -> the page of compare, for runs that nobody planned as a comparison, finished or not."""

import os
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.config.derived import router_names, tokens_per_step
from pangu_sigma.config.load import to_dict
from pangu_sigma.config.strict_yaml import shown
from pangu_sigma.metrics.perplexity import DIVERGED
from pangu_sigma.metrics.window import COMPILING_STEPS
from pangu_sigma.report.collect import Collection, collect_run, collection_of
from pangu_sigma.report.comparison import COUNTERS, SINGLE_PHASE, ComparedRun, Comparison, SimulatedCluster
from pangu_sigma.report.folder import RunFolder, RunState
from pangu_sigma.report.page import MARKERS, paragraph, table
from pangu_sigma.report.report import MIXTURE, RULE, ReportText, assemble
from pangu_sigma.runtime.files import check_output, write_output
from pangu_sigma.runtime.strict_json import read_object

REFRESH_S = 5
_DRAWING_SHARE = 0.1  # most of a processor's time that a page which is followed may take from the runs beside it
_ONE_SEED = 0  # every folder stands for itself: all are compared with the first, whatever their seeds
_OWN_PLACE = ("train.output_dir", "checkpoint.resume")  # differ between runs that are otherwise the same
MEASURED = RULE + " Ratios are to {first}. An unfinished run is shown as far as it is."


def report(folders: Sequence[str], output: Optional[str] = None, follow: bool = False) -> Path:
    """Writes the page of some runs, once, or again and again until all of them are finished; returns its path.

    Args:
        folders: run folders, also of unfinished runs.
        output: the page's file; None: report.html in the run's folder, or in the folder that all runs have in common.
        follow: write it again whenever a run has made a step; the page then loads itself again in the browser.

    Raises:
        InputError: a folder is not one of a run, one is given twice, or the page cannot be written.
        KeyboardInterrupt: while following; the page is then left as it is, and no longer loads itself.
    """
    _check_distinct(folders)
    runs = [RunFolder(folder) for folder in folders]
    if output:
        path = Path(output)
    elif len(folders) == 1:
        path = Path(folders[0]) / "report.html"
    else:
        shared = os.path.commonpath([os.path.realpath(folder) for folder in folders])
        path = Path(os.path.relpath(shared)) / "report.html"
    check_output("--output", path, MARKERS)
    states = [run.read() for run in runs]
    live = follow and not all(state.finished for state in states)
    pause = _write(path, states, live)
    print(
        f"report: {path}" + (" (written anew until all runs are finished; Ctrl-C ends it)" if live else ""), flush=True
    )
    try:
        while live:
            time.sleep(pause)
            before, states = states, [run.read() for run in runs]
            live = not all(state.finished for state in states)
            if not live or [state.written_s for state in states] != [state.written_s for state in before]:
                pause = _write(path, states, live)
    finally:
        if live:  # interrupted, or a folder is gone
            write_output("--output", path, render(states), MARKERS)
    return path


def _write(path: Path, states: Sequence[RunState], live: bool) -> float:
    """Writes the page; returns after how many seconds it may be written again."""
    begin = time.monotonic()
    write_output("--output", path, render(states, REFRESH_S if live else None), MARKERS)
    return max(REFRESH_S, (time.monotonic() - begin) * (1 / _DRAWING_SHARE - 1))


def render(states: Sequence[RunState], refresh_s: Optional[int] = None) -> str:
    """The page as HTML.

    Args:
        states: the runs; ratios are to the first.
        refresh_s: seconds after which the page loads itself again; None: never.
    """
    names = short_names([state.folder for state in states])
    words = ReportText(
        f"Run{'s' if len(states) > 1 else ''}: {', '.join(names)}",
        MIXTURE,
        _progress(states),
        _setting(names, states),
        MEASURED.format(first=names[0]),
    )
    return assemble(collection(names, states), words, refresh_s)


def read_runs(folders: Sequence[str]) -> Collection:
    """The runs as they are now. `folders`: of one run each. Raises InputError: a folder is not one of a run."""
    states = [RunFolder(folder).read() for folder in folders]
    return collection(short_names([state.folder for state in states]), states)


def collection(names: Sequence[str], states: Sequence[RunState]) -> Collection:
    """The runs as a comparison of one phase, in which each folder is a variant of its own."""
    collected = []
    for name, state in zip(names, states):
        nodes = len(read_object(state.folder / COUNTERS).get("interfaces", [])) or 1
        cluster = SimulatedCluster(nodes, ranks_per_node=1, rate=None, pin=False)
        run = ComparedRun(SINGLE_PHASE, name, _ONE_SEED, cluster, overrides=(), config=state.config, settings="")
        collected.append(collect_run(run, state.folder, state.records, COMPILING_STEPS))
    plan = Comparison(
        file="",
        base="",
        variants=tuple(names),
        baseline=names[0],
        phases=(SINGLE_PHASE,),
        warmup_steps_ignored=COMPILING_STEPS,
        run_timeout=0.0,
        runs=tuple(item.run for item in collected),
    )
    return collection_of(plan, collected)


def short_names(folders: Sequence[Path]) -> List[str]:
    """What tells the folders apart: their paths without what all of them begin with. The folder's own name if there is
    one only.
    """
    whole = [Path(os.path.realpath(folder)).parts for folder in folders]
    shared = len(os.path.commonprefix(whole)) if len(whole) > 1 else len(whole[0]) - 1
    return ["/".join(parts[min(shared, len(parts) - 1) :]) for parts in whole]


def _progress(states: Sequence[RunState]) -> str:
    finished = sum(state.finished for state in states)
    if finished == len(states):
        return ""
    which = "The run is" if len(states) == 1 else f"{finished} of {len(states)} runs are"
    return paragraph(f"{which}{' not' if len(states) == 1 else ''} finished: what follows may still change.", "note")


def _setting(names: Sequence[str], states: Sequence[RunState]) -> str:
    own = differences([state.config for state in states])
    header = ["run", "how far", "router", "tokens a step", *(["what makes it different"] if len(states) > 1 else [])]
    rows = []
    for name, state, different in zip(names, states, own):
        tokens = tokens_per_step(state.config)
        row = [name, _how_far(state), router_names(state.config), f"{tokens:,}"]
        rows.append([*row, ", ".join(different) or "nothing but its folder"] if len(states) > 1 else row)
    return table(header, rows, "words")


def _how_far(state: RunState) -> str:
    if state.diverged:
        return f"{DIVERGED}: ended after step {state.step} of {state.steps}"
    if state.finished:
        return f"finished: {state.steps} steps"
    if not state.records:
        return f"no step of {state.steps} yet"
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.written_s))
    return f"step {state.step} of {state.steps}, written {written}"


def differences(configs: Sequence[Any]) -> List[List[str]]:
    """Of each configuration, as `key=value`, what is not the same in all of them."""
    flat = [_flat(to_dict(config), "") for config in configs]
    keys = [key for key in flat[0] if key not in _OWN_PLACE] + sorted(
        {key for one in flat for key in one} - set(flat[0])
    )
    return [
        [f"{key}={_text(one.get(key))}" for key in keys if any(other.get(key) != one.get(key) for other in flat)]
        for one in flat
    ]


def _flat(values: Mapping[str, Any], prefix: str) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for name, value in values.items():
        found.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _check_distinct(folders: Sequence[str]) -> None:
    seen: Dict[Path, str] = {}
    for folder in folders:
        place = Path(os.path.realpath(folder))
        if place in seen:
            raise InputError(f"{seen[place]} and {folder} are the same folder, expected each run once")
        seen[place] = folder
