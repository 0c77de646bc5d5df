"""The folder of a run's checkpoints: `step_N` is whole or absent.

A checkpoint is written in `step_N.part`, which a marker tells from a user's folder, and renamed when all of it is on
disk. What is in the way is set aside (`.aside`). One that is to be removed gets a temporary name first. Only files that
a checkpoint's manifest lists, or that writing left in a marked folder, are ever removed: a folder that holds others
stays whole.
"""

import glob
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.format import NAME, read_manifest
from pangu_sigma.errors import CheckpointNotWritten
from pangu_sigma.runtime.files import (
    foreign_files,
    new_folder,
    remove_abandoned,
    remove_folder,
    set_aside,
    sync_folder,
    temporary_path,
)

PART, ASIDE = ".part", ".aside"
MARKER = ".pangu-sigma-writes"  # in a folder that is being written
# Files that writing a checkpoint leaves when it is cut off: shards of training and of `ckpt`, the ranks' notes, and
# other files.
_WRITTEN = (
    MARKER,
    "dense_*.safetensors",
    "experts_*.safetensors",
    "shard_*.safetensors",
    "part_*.json",
    "part_*.json.writing",
    NAME,
    "tokenizer.model",
    "tokenizer.json",
    "config.yaml",
)


class Finished(NamedTuple):
    """A checkpoint that was finished once; whether it still is what was written only reading tells."""

    step: int
    path: Path


def finished(root: Path) -> List[Finished]:
    """Checkpoints under `root`, oldest first."""
    found = [(path.name[5:], path) for path in root.glob("step_*") if path.is_dir()]
    return sorted(Finished(int(number), path) for number, path in found if number.isdecimal() and number.isascii())


def begin(root: Path, step: int) -> Path:
    """An empty `step_N.part` under `root`, for `step` N; what earlier attempts left is removed, what others put there
    is set aside. Raises OSError.
    """
    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root, _WRITTEN)
    for leftover in root.glob(f"step_*{PART}"):
        if (leftover / MARKER).is_file():
            remove_folder(leftover, _WRITTEN)
    part = root / f"step_{step}{PART}"
    if os.path.lexists(part):
        set_aside(part, ASIDE)
    part.mkdir()
    (part / MARKER).touch()
    return part


@contextmanager
def new_checkpoint_folder(target: Path, own: Sequence[str] = _WRITTEN) -> Iterator[Path]:
    """A folder to fill, which appears as `target`, whole or not at all; `own`: see `runtime.files.new_folder`.

    Raises CheckpointNotWritten: the disk refuses, or something else has come to be at `target`.
    """
    try:
        with new_folder(target, own) as folder:
            yield folder
    except OSError as error:
        raise CheckpointNotWritten(
            f"{target}: cannot be written ({error.strerror or error}); expected the name of a new folder on a disk "
            "with room for it"
        ) from None


def publish(part: Path, final: Path) -> None:
    """Makes a whole `part` appear as `final`. Everything in it has been synced. Raises OSError."""
    (part / MARKER).unlink(missing_ok=True)
    sync_folder(part)
    if os.path.lexists(final):
        set_aside(final, ASIDE)
    os.rename(part, final)
    sync_folder(final.parent)


def prune(root: Path, keep_last: int, keep_every: int) -> None:
    """Removes checkpoints under `root`, all but the newest `keep_last`, those whose step is a multiple of `keep_every`
    (0: none), and those that hold other files than their manifest lists.
    """
    for step, path in finished(root)[:-keep_last]:
        try:
            manifest = read_manifest(path)
        except InputError:
            continue
        own = tuple(map(glob.escape, (NAME, *manifest.shards, *manifest.files)))
        if (keep_every and step % keep_every == 0) or path.is_symlink() or foreign_files(path, own):
            continue
        removed = temporary_path(root)
        os.rename(path, removed)
        remove_folder(removed, own)


def set_aside_after(root: Path, step: int) -> List[Path]:
    """Renames checkpoints of later steps than `step`, from which a run resumes, so that none of them is taken for its
    own. Returns the new names.
    """
    moved = []
    for _, path in (checkpoint for checkpoint in finished(root) if checkpoint.step > step):
        moved.append(set_aside(path, ASIDE))
    return moved


def resolve(path: Path) -> List[Path]:
    """The checkpoints that a path means, oldest first: itself, those of a run directory, or those of its `checkpoints`
    folder.
    """
    if (path / NAME).is_file():
        return [path]
    inner: Optional[Path] = next((folder for folder in (path / "checkpoints", path) if finished(folder)), None)
    return [path] if inner is None else [checkpoint.path for checkpoint in finished(inner)]
