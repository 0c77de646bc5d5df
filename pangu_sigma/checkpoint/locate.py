"""What a user means by a path: a configuration, a run, one of its checkpoints, or a folder of runs. One rule for all
commands and for Python; no MindSpore.

    a file                             a configuration; of a run's own `config.yaml`, who asks for a model means the run
    a folder with a manifest.json      a checkpoint
    a folder of step_N                 the newest checkpoint in it, or the run whose `checkpoints` it is
    a folder in which training wrote   a run
    any other folder with runs below   all of them, where a command takes several
"""

import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Union

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import finished
from pangu_sigma.checkpoint.format import NAME as MANIFEST
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.config.load import Overrides, config_with, load_config, read_sections, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.manifest import TOKEN_COUNTS
from pangu_sigma.runtime.run_folder import CHECKPOINTS, CONFIG, METRICS, SUMMARY, is_saved_config

StrPath = Union[str, "os.PathLike[str]"]
# What a path can be, and what it can be asked for.
FILE, RUN, CHECKPOINT, RUNS, UNKNOWN = "configuration", "run", "checkpoint", "folder of runs", "something else"
SETTINGS, TRAINING, MODEL = "settings", "training", "model"
_DEEPEST = 6  # folders below one of runs in which runs are looked for; a comparison's are four deep
_SHOWN = 4


class Located(NamedTuple):
    """What a path leads to: which of the kinds above it is, and its folder or file."""

    kind: str
    path: Path


def locate(path: StrPath) -> Located:
    """Says what stands at `path`; `UNKNOWN` where nothing does that a command could take."""
    place = Path(path)
    if not os.path.isdir(place):  # unlike Path.is_dir, False for a name that is too long
        return Located(FILE if os.path.lexists(place) else UNKNOWN, place)
    if os.path.isfile(place / MANIFEST) and not os.path.exists(
        place / TOKEN_COUNTS
    ):  # prepared data have a manifest, too
        return Located(CHECKPOINT, place)
    if is_run(place):
        return Located(RUN, place)
    if finished(place):
        whole = Path(os.path.abspath(place))
        if whole.name == CHECKPOINTS and is_run(whole.parent):
            return Located(RUN, place.parent if place.name == CHECKPOINTS else whole.parent)
        return Located(CHECKPOINT, finished(place)[-1].path)
    return Located(RUNS if runs_below(place) else UNKNOWN, place)


def is_run(folder: Path) -> bool:
    """Whether training wrote in the folder. A configuration alone is none: `ckpt` and `export` leave one as well."""
    if not os.path.isfile(folder / CONFIG):
        return bool(finished(folder / CHECKPOINTS))
    return any(os.path.exists(folder / name) for name in (METRICS, SUMMARY, CHECKPOINTS))


def runs_below(folder: Path) -> List[Path]:
    """The runs in a folder and in those below it, in the order of their names; none is looked for inside a run."""
    found: List[Path] = []
    for place, inner, _ in os.walk(folder):
        here = Path(place)
        if here != folder and is_run(here):
            found.append(here)
            inner.clear()
        if len(here.relative_to(folder).parts) >= _DEEPEST or os.path.isfile(here / MANIFEST):
            inner.clear()
        inner[:] = sorted(name for name in inner if not name.startswith("."))
    return sorted(found)


# ---- a configuration


def read_configuration(path: StrPath, overrides: Overrides = (), use: str = SETTINGS) -> Config:
    """The configuration that `path` means.

    A run's own has its folder as `train.output_dir`, wherever the folder was moved to. With `use` MODEL it also names
    the checkpoint: the run's newest, or the one at `path`.

    Args:
        path: a configuration file, a run, or a checkpoint.
        overrides: as of `load_config`; they come last.
        use: what it is for. SETTINGS: it is read, no more. TRAINING: a run is made, or resumed; no checkpoint, which
            does not say where to. MODEL: the model of a run or checkpoint is asked.

    Raises InputError: as `load_config`; `path` is none of these, or holds several runs; a damaged checkpoint.
    """
    kind, place = _one(path)
    if use == MODEL and kind == FILE and _is_of_run(place):
        kind, place = RUN, place.parent
    if kind == RUN:
        own: Dict[str, Any] = {"train.output_dir": str(place)}
        if use == MODEL:
            own.update({"checkpoint.resume": "auto", "checkpoint.initial": None})
        saved = place / CONFIG
        return config_with(read_sections(saved) if saved.is_file() else _sections_of(newest(place)), own, overrides)
    if kind == CHECKPOINT:
        if use == TRAINING:
            raise InputError(
                f"{path}: found a checkpoint; expected a configuration or a run, and checkpoint.resume={path} to "
                f"resume there, or checkpoint.initial={path} to begin a new run with its weights"
            )
        home = home_of(place)
        own = {} if home == place and use != MODEL else {"train.output_dir": str(home)}
        if use == MODEL:
            own.update({"checkpoint.resume": str(place), "checkpoint.initial": None})
        return config_with(_sections_of(place), own, overrides)
    if os.path.isdir(place):
        raise InputError(
            f"{path}: found neither run nor checkpoint in this folder; expected a YAML configuration, the folder of a "
            "run (train.output_dir), or a checkpoint folder such as RUN/checkpoints/step_100"
        )
    return load_config(path, overrides)


def _is_of_run(file: Path) -> bool:
    """Whether a configuration is the one that a run saved in its folder."""
    return file.name == CONFIG and is_saved_config(file) and is_run(file.parent)


def home_of(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to, or the checkpoint itself where it stands alone: what is made of it goes
    there.
    """
    above = Path(os.path.abspath(checkpoint)).parents
    if above[0].name != CHECKPOINTS or not is_run(above[1]):
        return checkpoint
    near = checkpoint.parent.parent
    return near if os.path.realpath(near) == os.path.realpath(above[1]) else above[1]


def newest(run: Path) -> Path:
    """The newest checkpoint of a run. Raises InputError where there is none."""
    found = finished(run / CHECKPOINTS)
    if not found:
        raise InputError(f"{run}: holds no checkpoint; expected a run that has written one")
    return found[-1].path


def _sections_of(checkpoint: Path) -> Dict[str, Any]:
    with CheckpointReader.open(checkpoint) as reader:
        return to_dict(reader.config())


def _one(path: StrPath) -> Located:
    """As `locate`, but a folder of runs is the run in it. Raises InputError where it holds several."""
    found = locate(path)
    if found.kind != RUNS:
        return found
    runs = [str(run) for run in runs_below(found.path)]
    if len(runs) > 1:
        shown = ", ".join(runs[:_SHOWN]) + (f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else "")
        raise InputError(f"{path}: holds {len(runs)} runs; expected one of them: {shown}")
    return Located(RUN, Path(runs[0]))


# ---- runs and checkpoints


def runs_named(paths: Sequence[StrPath]) -> List[str]:
    """The run folders that paths mean: a run; the run of a checkpoint or of a configuration; all runs of a folder.

    A path at which nothing of these stands is given back as it is: whoever reads a run says what is missing of it.
    """
    found: List[str] = []
    for path in paths:
        kind, place = locate(path)
        if kind == RUNS:
            found += map(str, runs_below(place))
        elif kind == FILE:
            found.append(str(place.parent) if _is_of_run(place) else load_config(path).train.output_dir)
        elif kind == CHECKPOINT:
            if home_of(place) == place:
                raise InputError(f"{path}: found a checkpoint that belongs to no run; expected the folder of a run")
            found.append(str(home_of(place)))
        else:
            found.append(str(place))
    return found


def run_named(path: StrPath) -> str:
    """The one run that a path means; see `runs_named`. Raises InputError where it means several."""
    return runs_named([_one(path).path])[0]


def checkpoints_named(path: StrPath) -> str:
    """The checkpoint, or the run whose checkpoints are meant: what `folders.resolve` takes.

    A configuration means the run in its `train.output_dir`. Raises InputError where a path means several runs.
    """
    kind, place = _one(path)
    return runs_named([place])[0] if kind == FILE else str(place)


def all_checkpoints_named(paths: Sequence[StrPath]) -> List[str]:
    """As `checkpoints_named` of each path, but a folder of runs means all of them."""
    found: List[str] = []
    for path in paths:
        kind, place = locate(path)
        found += map(str, runs_below(place)) if kind == RUNS else [checkpoints_named(path)]
    return found
