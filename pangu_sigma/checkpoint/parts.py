"""What one rank writes of a checkpoint, and how the parts of all ranks become one.

Every rank that holds something nobody before it holds writes shards of its own and, when they are on disk,
`part_R.json`, which says what is in them. The first rank waits for all such files and makes the manifest of them. Ranks
meet in the file system alone, so that writing needs no collective and can happen beside training.
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
    """A tensor, or the part of it that this rank holds, on its way into the shard file `shard`."""

    name: str
    array: np.ndarray
    part: Optional[ShardSpec]
    shard: str


def part_name(rank: int) -> str:
    return f"part_{rank}.json"


def write_part(folder: Path, rank: int, pieces: Sequence[LocalTensor]) -> None:
    """Writes this rank's shards, then its `part_R.json`. Raises OSError."""
    entries: List[Dict[str, Any]] = []
    sizes: Dict[str, int] = {}
    for shard in sorted({piece.shard for piece in pieces}):
        own = [piece for piece in pieces if piece.shard == shard]
        checksums = write_shard(folder / shard, [planned(_key(piece), piece.array) for piece in own])
        sizes[shard] = (folder / shard).stat().st_size
        entries += [_describe(piece, checksums[_key(piece)]) for piece in own]
    beside = folder / f"{part_name(rank)}.writing"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump({"tensors": entries, "shards": sizes}, file)
    os.replace(beside, folder / part_name(rank))


def _key(piece: LocalTensor) -> str:
    return piece.name if piece.part is None else f"{piece.name}[{piece.part.shard}/{piece.part.num_shards}]"


def _describe(piece: LocalTensor, checksum: str) -> Dict[str, Any]:
    part = piece.part
    whole = piece.array.shape if part is None else part.whole_shape(piece.array.shape)
    return {
        "name": piece.name,
        "shape": list(whole),
        "dtype": NAMES_OF[piece.array.dtype],
        "shard": piece.shard,
        "crc32": checksum,
        "part": None if part is None else [part.axis, part.shard, part.num_shards, part.blocks],
    }


def collect_parts(
    folder: Path, ranks: Iterable[int], timeout_s: float, check: Callable[[], None]
) -> Tuple[Dict[str, TensorEntry], Dict[str, int]]:
    """Waits for the `part_R.json` of `ranks`, puts their contents together and removes them. `check` is called while
    waiting, and raises where there is nothing left to wait for.

    Raises CheckpointNotWritten: a rank's part did not come in time, or a tensor's parts are not all there.
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
    tensors = _merge(folder, [entry for part in parts for entry in part["tensors"]])
    for rank in waited_for:
        (folder / part_name(rank)).unlink()
    return tensors, {shard: size for part in parts for shard, size in part["shards"].items()}


def _merge(folder: Path, entries: List[Dict[str, Any]]) -> Dict[str, TensorEntry]:
    by_name: Dict[str, List[Dict[str, Any]]] = {}
    for entry in entries:
        by_name.setdefault(entry["name"], []).append(entry)
    return {name: _tensor(folder, name, by_name[name]) for name in sorted(by_name)}


def _tensor(folder: Path, name: str, found: List[Dict[str, Any]]) -> TensorEntry:
    axis, _, count, blocks = found[0]["part"] or (0, 0, 1, 1)
    ordered = sorted(found, key=lambda entry: entry["part"][1] if entry["part"] else 0)
    indices = [entry["part"][1] if entry["part"] else 0 for entry in ordered]
    if indices != list(range(count)):
        raise CheckpointNotWritten(
            f"{folder}: of tensor {name} the parts {indices} were written; expected 0 to {count - 1}"
        )
    parts = tuple(ShardPart(entry["shard"], entry["crc32"]) for entry in ordered)
    return TensorEntry(tuple(found[0]["shape"]), found[0]["dtype"], parts, axis, blocks)
