"""The folder of a run's checkpoints: `step_N` is whole or absent.

A checkpoint is written in `step_N.part` and renamed when all of it is on disk. What takes longer than a rename happens under another
name: a checkpoint that is to be removed is `step_N.removed` first, one that is written anew stands aside as `step_N.replaced`.

Folders that hold anything but the files of a checkpoint are never removed: what else lies in them is a user's.
"""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence

from pangu_sigma.checkpoint.errors import CheckpointNotWritten
from pangu_sigma.checkpoint.manifest import NAME
from pangu_sigma.runtime.files import foreign_files, new_folder, remove_folder, set_aside, sync_folder

PART, REMOVED, REPLACED, ASIDE = ".part", ".removed", ".replaced", ".aside"
# Files of a checkpoint, whole or being written: shards of training and of `ckpt`, the ranks' notes, manifest, tokenizer, configuration.
OWN = ("dense_*.safetensors", "experts_*.safetensors", "shard_*.safetensors", "part_*.json", "part_*.json.writing", NAME,
       "tokenizer.model", "config.yaml")


class Finished(NamedTuple):
    """A checkpoint that was finished once; whether it still is what was written only reading tells."""

    step: int
    path: Path


def finished(root: Path) -> List[Finished]:
    """Checkpoints under `root`, oldest first."""
    found = [(path.name[5:], path) for path in root.glob("step_*") if path.is_dir()]
    return sorted(Finished(int(number), path) for number, path in found if number.isdecimal() and number.isascii())


def begin(root: Path, step: int) -> Path:
    """An empty `step_N.part`; what earlier attempts left is cleared away, or set aside if it holds other files too. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    recover(root)
    part = root / f"step_{step}{PART}"
    for leftover in (*root.glob(f"step_*{PART}"), *root.glob(f"step_*{REMOVED}")):
        remove_folder(leftover, OWN)
    if os.path.lexists(part):
        set_aside(part, ASIDE)
    part.mkdir()
    return part


@contextmanager
def new_checkpoint_folder(target: Path, own: Sequence[str] = OWN) -> Iterator[Path]:
    """A folder to fill, which appears as `target`, whole or not at all; `own`: see `runtime.files.new_folder`.

    Raises CheckpointNotWritten: the disk refuses, or something else has come to be at `target`.
    """
    try:
        with new_folder(target, own) as folder:
            yield folder
    except OSError as error:
        raise CheckpointNotWritten(f"{target}: cannot be written ({error.strerror or error}); expected the name of a new folder on a disk "
                                   "with room for it") from None


def recover(root: Path) -> None:
    """Puts back a checkpoint that was to be replaced when the program ended between two renames; clears it away otherwise."""
    for aside in root.glob(f"step_*{REPLACED}"):
        final = aside.with_suffix("")
        if final.exists():
            remove_folder(aside, OWN)
        else:
            os.rename(aside, final)


def publish(part: Path, final: Path) -> None:
    """Makes a whole `part` appear as `final`. Everything in it has been synced. Raises OSError."""
    sync_folder(part)
    if not os.path.lexists(final):
        os.rename(part, final)
    elif final.is_symlink() or foreign_files(final, OWN):
        set_aside(final, ASIDE)
        os.rename(part, final)
    else:
        replaced = final.with_name(final.name + REPLACED)
        os.rename(final, replaced)
        os.rename(part, final)
        remove_folder(replaced, OWN)
    sync_folder(final.parent)


def prune(root: Path, keep_last: int, keep_every: int) -> None:
    """Removes all but the newest `keep_last`, those whose step is a multiple of `keep_every` (0: none), and those that hold other files
    than a checkpoint's.
    """
    for step, path in finished(root)[:-keep_last]:
        if (keep_every and step % keep_every == 0) or path.is_symlink() or foreign_files(path, OWN):
            continue
        removed = path.with_name(path.name + REMOVED)
        os.rename(path, removed)
        remove_folder(removed, OWN)


def set_aside_after(root: Path, step: int) -> List[Path]:
    """Renames checkpoints of later steps than the one a run goes on from, so that none of them is taken for its own. Returns the new
    names.
    """
    moved = []
    for _, path in (checkpoint for checkpoint in finished(root) if checkpoint.step > step):
        moved.append(set_aside(path, ASIDE))
    return moved


def resolve(path: Path) -> List[Path]:
    """The checkpoints that a path means, oldest first: itself, those of a run directory, or those of its `checkpoints` folder."""
    if (path / NAME).is_file():
        return [path]
    inner: Optional[Path] = next((folder for folder in (path / "checkpoints", path) if finished(folder)), None)
    return [path] if inner is None else [checkpoint.path for checkpoint in finished(inner)]
