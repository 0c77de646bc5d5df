"""`pangu-sigma ckpt reshard`: the same tensors in other files.

A job of any layout reads a checkpoint of any other as it is (`CheckpointReader.read`); this is for moving checkpoints
about, for joining what tensor-parallel ranks cut up, and for leaving out what only training needs.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from pangu_sigma.checkpoint.format import CheckpointHeader
from pangu_sigma.checkpoint.names import is_training_state
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.shards import PlannedTensor
from pangu_sigma.checkpoint.surgery.rewrite import newest, write_checkpoint


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
