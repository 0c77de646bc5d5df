"""What belongs to a run in `train.output_dir`, and whether a folder holds one: a folder holds one history, and nothing
of others is touched.
"""

import json
import os
from pathlib import Path

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.files import check_output

CHECKPOINTS, CONFIG, METRICS, SUMMARY = "checkpoints", "config.yaml", "metrics.jsonl", "summary.json"
ENVIRONMENT = "environment.json"
# What training writes there, besides the logs, which launchers keep under names of their own.
_WRITTEN = (METRICS, CHECKPOINTS, SUMMARY, CONFIG, ENVIRONMENT, "cosines.json", "profile", "tensorboard")
_MARKERS = {
    METRICS: (b'"progress/step"',),
    SUMMARY: (b'"router"',),
    ENVIRONMENT: (b'"launches"',),
    "cosines.json": (b'"token_token_within"',),
}  # within the first 4 KiB
SAVED_CONFIG = "# Every key of a configuration, as pangu-sigma resolved it."  # first line of such a file


def holds_run(folder: Path) -> bool:
    """True if training wrote in the folder: a line of metrics, a checkpoint's folder, or the configuration that it
    saves first.
    """
    if any(path.is_dir() for path in (folder / CHECKPOINTS).glob("step_*")):
        return True
    try:
        begins_with_a_step = "progress/step" in json.loads(_head(folder / METRICS).partition(b"\n")[0])
    except (ValueError, TypeError):
        begins_with_a_step = False
    return begins_with_a_step or is_saved_config(folder / CONFIG)


def is_saved_config(path: Path) -> bool:
    """True if `save_config` wrote the file. Runs before version 0.2 have one that does not say so."""
    return _head(path).startswith(SAVED_CONFIG.encode())


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def check_new(folder: Path) -> None:
    """Raises InputError where a new run cannot have the folder: it holds a run, or something in the way of one."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"train.output_dir: {folder} is a file; expected a folder or a new name")
    found = next((name for name in _WRITTEN if os.path.lexists(folder / name)), None)
    if holds_run(folder):
        raise InputError(
            f"train.output_dir: {folder} holds an earlier run ({found}); expected a new folder, or "
            "checkpoint.resume=auto to resume that run"
        )
    if found is not None:
        raise InputError(
            f"train.output_dir: {folder / found} is in the way, and no run of pangu-sigma wrote it; expected a new "
            "folder"
        )


def check_own(folder: Path) -> None:
    """Raises InputError where something that no run wrote has the name of a file that a run, resumed in the folder,
    would write.
    """
    if not holds_run(folder):
        check_new(folder)
    for name, markers in _MARKERS.items():
        if (folder / name).is_symlink():
            raise InputError(
                f"train.output_dir: {folder / name} is a symbolic link, which a run would write through; expected a "
                "file"
            )
        check_output("train.output_dir:", folder / name, markers)
