"""Shards: safetensors files, written one tensor at a time, and read one tensor at a time.

The library that reads them would hold all tensors of a file in memory to write it; here the header is written first,
from shapes and dtypes alone, and each tensor is then asked for, written, and forgotten.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, Type

import numpy as np
from safetensors import SafetensorError, safe_open

from pangu_sigma.checkpoint.format import DTYPES, crc32
from pangu_sigma.errors import DamagedCheckpoint

NAMES_OF = {
    np.dtype(kind): name
    for name, kind in (
        ("F64", "<f8"),
        ("F32", "<f4"),
        ("F16", "<f2"),
        ("I64", "<i8"),
        ("I32", "<i4"),
        ("I16", "<i2"),
        ("I8", "i1"),
        ("U8", "u1"),
        ("BOOL", "?"),
    )
}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is to be written: its name in the shard, its shape, its dtype as safetensors spells it, and where
    it comes from.
    """

    key: str
    shape: Tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]


def planned(key: str, array: np.ndarray) -> PlannedTensor:
    """A tensor that is in memory already."""
    return PlannedTensor(key, array.shape, NAMES_OF[array.dtype], lambda: array)


def write_shard(
    path: Path, tensors: Sequence[PlannedTensor], metadata: Optional[Mapping[str, str]] = None
) -> Dict[str, str]:
    """Writes and syncs a safetensors file at `path`; of its `tensors`, one is in memory at a time. Returns the CRC-32
    of each by key. `metadata`: what the file's header says besides, if anything.

    Raises OSError as the file system does.
    """
    # Larger elements first: all stay aligned.
    ordered = sorted(tensors, key=lambda tensor: (-DTYPES[tensor.dtype], tensor.key))
    checksums = {}
    with open(path, "wb") as file:
        file.write(_header(ordered, metadata))
        for tensor in ordered:
            data = raw_bytes(tensor.load())
            checksums[tensor.key] = crc32(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return checksums


def _header(tensors: Sequence[PlannedTensor], metadata: Optional[Mapping[str, str]]) -> bytes:
    """Length of the JSON text (8 bytes, little-endian), then the text, padded so that tensors begin at a multiple of
    8.
    """
    entries: Dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        end = start + int(np.prod(tensor.shape, dtype=np.int64)) * DTYPES[tensor.dtype]
        entries[tensor.key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(array: np.ndarray) -> memoryview:
    """An array's bytes in C order, little-endian, without a copy where they lie so already."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


class ShardFiles:
    """The shards of a folder, opened as they are needed; a context manager that closes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: Dict[str, Any] = {}

    def __enter__(self) -> "ShardFiles":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._open.clear()

    def read(self, shard: str, key: str, checksum: str) -> np.ndarray:
        """The tensor of name `key` in the file `shard`, if its bytes have the CRC-32 `checksum`. Raises
        DamagedCheckpoint naming file and tensor.
        """
        path = self._folder / shard
        try:
            if shard not in self._open:
                self._open[shard] = safe_open(path, framework="numpy")
            array: np.ndarray = self._open[shard].get_tensor(key)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DamagedCheckpoint(f"{path}: tensor {key} cannot be read ({reason}); the file is damaged") from None
        if crc32(raw_bytes(array)) != checksum:
            raise DamagedCheckpoint(
                f"{path}: tensor {key} has another checksum than the manifest says; the file is damaged"
            )
        return array
