"""What one rank writes of a checkpoint, and how the parts of all ranks become one.

Every rank that holds something nobody before it holds writes shards of its own and, when they are on disk,
`part_R.json`, which says what is in them. The first rank waits for all such files and makes the manifest of them. Ranks
meet in the file system alone, so that writing needs no collective and can overlap training.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.checkpoint.format import ShardPart, TensorEntry
from pangu_sigma.checkpoint.shards import NAMES_OF, planned, write_shard
from pangu_sigma.errors import CheckpointNotWritten

POLL_S = 0.02


@dataclass(frozen=True)
class LocalTensor:
    """A tensor, or the part of it that this rank holds, on its way into a shard file.

    Attributes:
        name: of the tensor.
        array: what this rank holds.
        spec: which part of the whole that is; None: all of it.
        file: name of the shard file.
    """

    name: str
    array: np.ndarray
    spec: Optional[ShardSpec]
    file: str

    @property
    def key(self) -> str:
        """Its name within the file."""
        return self.name if self.spec is None else f"{self.name}[{self.spec.shard}/{self.spec.num_shards}]"


def part_name(rank: int) -> str:
    return f"part_{rank}.json"


def write_part(folder: Path, rank: int, tensors: Sequence[LocalTensor]) -> None:
    """Writes the shards of `rank` with its `tensors` into `folder`, then its `part_R.json`. Raises OSError."""
    entries: List[Dict[str, Any]] = []
    sizes: Dict[str, int] = {}
    for file_name in sorted({tensor.file for tensor in tensors}):
        own = [tensor for tensor in tensors if tensor.file == file_name]
        checksums = write_shard(folder / file_name, [planned(tensor.key, tensor.array) for tensor in own])
        sizes[file_name] = (folder / file_name).stat().st_size
        for tensor in own:
            spec, shape = tensor.spec, tensor.array.shape
            entries.append(
                {
                    "name": tensor.name,
                    "shape": list(shape if spec is None else spec.whole_shape(shape)),
                    "dtype": NAMES_OF[tensor.array.dtype],
                    "shard": tensor.file,
                    "crc32": checksums[tensor.key],
                    "part": None if spec is None else [spec.axis, spec.shard, spec.num_shards, spec.blocks],
                }
            )
    unfinished = folder / f"{part_name(rank)}.writing"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump({"tensors": entries, "shards": sizes}, file)
    os.replace(unfinished, folder / part_name(rank))


def collect_parts(
    folder: Path, ranks: Iterable[int], timeout_s: float, check: Callable[[], None]
) -> Tuple[Dict[str, TensorEntry], Dict[str, int]]:
    """Puts what all ranks wrote together: the tensors by name, and the bytes of each shard file.

    Args:
        folder: where they write.
        ranks: whose `part_R.json` are waited for; they are removed.
        timeout_s: how long.
        check: is called while waiting, and raises where there is nothing left to wait for.

    Raises:
        CheckpointNotWritten: a rank's part did not come in time, or a tensor's parts are not all there.
    """
    waited_for = list(ranks)
    deadline = time.monotonic() + timeout_s
    while True:
        missing = [rank for rank in waited_for if not (folder / part_name(rank)).exists()]
        if not missing:
            break
        if time.monotonic() > deadline:
            raise CheckpointNotWritten(
                f"{folder}: rank {', '.join(map(str, missing))} did not finish writing in {timeout_s:g} s after "
                "this rank"
            )
        check()
        time.sleep(POLL_S)
    parts = [json.loads((folder / part_name(rank)).read_text(encoding="utf-8")) for rank in waited_for]
    by_name: Dict[str, List[Dict[str, Any]]] = {}
    for part in parts:
        for entry in part["tensors"]:
            by_name.setdefault(entry["name"], []).append(entry)
    tensors = {}
    for name, found in sorted(by_name.items()):
        axis, _, count, blocks = found[0]["part"] or (0, 0, 1, 1)
        by_index = sorted((entry["part"][1] if entry["part"] else 0, entry["shard"], entry["crc32"]) for entry in found)
        indices = [index for index, _, _ in by_index]
        if indices != list(range(count)):
            raise CheckpointNotWritten(
                f"{folder}: of tensor {name} the parts {indices} were written; expected 0 to {count - 1}"
            )
        whole = tuple(ShardPart(shard, checksum) for _, shard, checksum in by_index)
        tensors[name] = TensorEntry(tuple(found[0]["shape"]), found[0]["dtype"], whole, axis, blocks)
    for rank in waited_for:
        (folder / part_name(rank)).unlink()
    return tensors, {shard: size for part in parts for shard, size in part["shards"].items()}
