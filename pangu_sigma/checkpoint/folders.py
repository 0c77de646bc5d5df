"""The folder of a run's checkpoints: `step_N` is whole or absent.

A checkpoint is written in `step_N.part` and renamed when all of it is on disk. What takes longer than a rename happens under another
name: a checkpoint that is to be removed is `step_N.removed` first, one that is written anew stands aside as `step_N.replaced`.
"""

import os
import shutil
from pathlib import Path
from typing import List, NamedTuple, Optional

from pangu_sigma.checkpoint.manifest import NAME

PART, REMOVED, REPLACED, ASIDE = ".part", ".removed", ".replaced", ".aside"


class Finished(NamedTuple):
    """A checkpoint that was finished once; whether it still is what was written only reading tells."""

    step: int
    path: Path


def finished(root: Path) -> List[Finished]:
    """Checkpoints under `root`, oldest first."""
    found = [(path.name[5:], path) for path in root.glob("step_*") if path.is_dir()]
    return sorted(Finished(int(number), path) for number, path in found if number.isdecimal() and number.isascii())


def begin(root: Path, step: int) -> Path:
    """An empty `step_N.part`; what earlier attempts left is cleared away. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    recover(root)
    for leftover in (*root.glob(f"step_*{PART}"), *root.glob(f"step_*{REMOVED}")):
        shutil.rmtree(leftover, ignore_errors=True)
    part = root / f"step_{step}{PART}"
    part.mkdir()
    return part


def recover(root: Path) -> None:
    """Puts back a checkpoint that was to be replaced when the program ended between two renames; clears it away otherwise."""
    for aside in root.glob(f"step_*{REPLACED}"):
        final = aside.with_suffix("")
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(aside, final)


def publish(part: Path, final: Path) -> None:
    """Makes a whole `part` appear as `final`. Everything in it has been synced. Raises OSError."""
    sync_folder(part)
    replaced = final.with_name(final.name + REPLACED)
    if final.exists():
        os.replace(final, replaced)
    os.replace(part, final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def prune(root: Path, keep_last: int, keep_every: int) -> None:
    """Removes all but the newest `keep_last` and those whose step is a multiple of `keep_every` (0: none)."""
    for step, path in finished(root)[:-keep_last]:
        if keep_every and step % keep_every == 0:
            continue
        removed = path.with_name(path.name + REMOVED)
        os.replace(path, removed)
        shutil.rmtree(removed, ignore_errors=True)


def set_aside_after(root: Path, step: int) -> List[Path]:
    """Renames checkpoints of later steps than the one a run goes on from, so that none of them is taken for its own. Returns the new
    names.
    """
    moved = []
    for _, path in (checkpoint for checkpoint in finished(root) if checkpoint.step > step):
        number, target = 1, path.with_name(path.name + ASIDE)
        while target.exists():
            number += 1
            target = path.with_name(f"{path.name}{ASIDE}{number}")
        os.replace(path, target)
        moved.append(target)
    return moved


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk, where the system lets folders be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resolve(path: Path) -> List[Path]:
    """The checkpoints that a path means, oldest first: itself, those of a run directory, or those of its `checkpoints` folder."""
    if (path / NAME).is_file():
        return [path]
    inner: Optional[Path] = next((folder for folder in (path / "checkpoints", path) if finished(folder)), None)
    return [path] if inner is None else [checkpoint.path for checkpoint in finished(inner)]
