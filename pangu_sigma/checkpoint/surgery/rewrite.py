"""Writing a checkpoint that no training wrote: tensors are planned first, then made, written and forgotten one by
one. And the plainest of them, `pangu-sigma ckpt reshard`: the same tensors in other files.

A job of any layout reads a checkpoint of any other as it is (`CheckpointReader.read`); resharding is for moving
checkpoints about, for joining what tensor-parallel ranks cut up, and for leaving out what only training needs.
"""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import new_checkpoint_folder, resolve
from pangu_sigma.checkpoint.format import (
    DTYPES,
    CheckpointHeader,
    CheckpointManifest,
    ShardPart,
    TensorEntry,
    store_files,
    write_manifest,
)
from pangu_sigma.checkpoint.names import is_training_state
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.shards import PlannedTensor, write_shard


def newest(source: str) -> Path:
    """The checkpoint that a command's argument means: the folder itself, or the newest of a run's."""
    return resolve(Path(source))[-1]


def check_target(target: Path) -> None:
    """Raises InputError where something is in the way: a checkpoint is never written over."""
    if os.path.lexists(target):
        raise InputError(f"{target}: is there already; expected the name of a new folder")


def write_checkpoint(
    target: Path,
    header: CheckpointHeader,
    tensors: Sequence[PlannedTensor],
    shards: int,
    add_files: Callable[[Path], None] = lambda folder: None,
    files: Optional[Mapping[str, bytes]] = None,
) -> None:
    """Writes a checkpoint into the new folder `target`.

    Args:
        target: the folder.
        header: what the manifest says but for the tensors.
        tensors: what is written, in the manifest's order.
        shards: number of shard files, of about equal size.
        add_files: adds files to the folder before it gets its name; the manifest does not list them.
        files: what the checkpoint carries besides its tensors, content by name; the manifest lists them.

    Memory: one tensor, and what making it takes.

    Raises:
        InputError: the target is there already, or there are fewer tensors than shards.
        CheckpointNotWritten: the disk refuses.
    """
    check_target(target)
    if shards > len(tensors):
        raise InputError(f"--shards {shards}: there are only {len(tensors)} tensors; expected at most as many shards")
    with new_checkpoint_folder(target) as part:
        entries: Dict[str, TensorEntry] = {}
        sizes: Dict[str, int] = {}
        for number, members in enumerate(pack(tensors, shards)):
            name = f"shard_{number}.safetensors"
            checksums = write_shard(part / name, members)
            sizes[name] = (part / name).stat().st_size
            for tensor in members:
                stored = ShardPart(name, checksums[tensor.key])
                entries[tensor.key] = TensorEntry(tensor.shape, tensor.dtype, (stored,))
        ordered = {tensor.key: entries[tensor.key] for tensor in tensors}
        write_manifest(CheckpointManifest(header, ordered, sizes, store_files(part, files or {})), part)
        add_files(part)


def pack(tensors: Sequence[PlannedTensor], bins: int) -> List[List[PlannedTensor]]:
    """Shares tensors out among `bins` files, the largest first, each to the file with the least so far; none stays
    empty.
    """
    members: List[List[PlannedTensor]] = [[] for _ in range(bins)]
    loads = [0] * bins
    for tensor in sorted(tensors, key=lambda tensor: (-planned_bytes(tensor), tensor.key)):
        lightest = min(range(bins), key=lambda number: (loads[number], len(members[number]), number))
        members[lightest].append(tensor)
        loads[lightest] += planned_bytes(tensor)
    return members


def planned_bytes(tensor: PlannedTensor) -> int:
    size = DTYPES[tensor.dtype]
    for length in tensor.shape:
        size *= length
    return size


def reshard(source: str, target: str, shards: int, weights_only: bool = False) -> None:
    """Writes the tensors of `source`, each whole, into `shards` files in the new folder `target`; with `weights_only`
    without what only training needs.

    Memory: the largest tensor, and once more where it was stored in parts.

    Raises InputError: no checkpoint, a damaged one, a target that is there already, more shards than tensors.
    """
    with CheckpointReader.open(newest(source)) as reader:
        header = without_training_state(reader.header) if weights_only else reader.header
        tensors = [
            PlannedTensor(name, entry.shape, entry.dtype, partial(reader.read, name))
            for name, entry in reader.manifest.tensors.items()
            if not (weights_only and is_training_state(name))
        ]
        files = {
            name: content
            for name in reader.manifest.files
            for content in (reader.read_file(name),)
            if content is not None
        }
        write_checkpoint(Path(target), header, tensors, shards, files=files)
        print(f"{target}: {len(tensors)} tensors of {reader.folder} in {shards} shard{'s' if shards > 1 else ''}")


def without_training_state(header: CheckpointHeader) -> CheckpointHeader:
    """The header of a checkpoint that keeps weights alone."""
    return replace(
        header,
        contents="weights",
        sampler={},
        rng={},
        scalars={name: value for name, value in header.scalars.items() if not is_training_state(name)},
    )
