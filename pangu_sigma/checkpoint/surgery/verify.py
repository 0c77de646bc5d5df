"""`pangu-sigma ckpt verify`: every byte of checkpoints against the checksums that were taken when they were written."""

from pathlib import Path
from typing import Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import resolve
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.text import megabytes
from pangu_sigma.errors import DamagedCheckpoint


def verify(paths: Sequence[str]) -> None:
    """Prints one line a checkpoint, of those that `paths` mean. Raises InputError where one is damaged, after looking
    at all.
    """
    checkpoints = [checkpoint for path in paths for checkpoint in resolve(Path(path))]
    damaged = []
    for checkpoint in checkpoints:
        try:
            with CheckpointReader.open(checkpoint) as reader:
                count, size = sum(1 for _ in reader.verify()), sum(reader.manifest.shards.values())
                files = "".join(f", {name}" for name in reader.manifest.files)
                print(
                    f"{checkpoint}: whole, step {reader.header.step}, {count} tensors, {megabytes(size)}{files}",
                    flush=True,
                )
        except DamagedCheckpoint as error:
            damaged.append(error)
            print(f"{checkpoint}: damaged: {error}", flush=True)
    if damaged:
        raise InputError(f"{len(damaged)} of {len(checkpoints)} checkpoints damaged: {damaged[0]}")
