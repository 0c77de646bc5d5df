"""Reading a checkpoint: any tensor, whole or any part of it, whatever parts it was stored in."""

from pathlib import Path
from types import TracebackType
from typing import Iterator, List, Optional, Type

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.checkpoint.format import CheckpointHeader, CheckpointManifest, TensorEntry, crc32, read_manifest
from pangu_sigma.checkpoint.shards import NAMES_OF, ShardFiles
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.renamed import with_new_names
from pangu_sigma.config.schema import Config
from pangu_sigma.errors import DamagedCheckpoint


class CheckpointReader:
    """A checkpoint on disk, opened for reading; a context manager.

    Nothing is read before it is asked for, and every byte that is read is checked.

    Args:
        folder: of the checkpoint.
        manifest: of it, as read.

    Attributes:
        folder, manifest: as given.
    """

    def __init__(self, folder: Path, manifest: CheckpointManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._files = ShardFiles(folder)

    @classmethod
    def open(cls, folder: Path) -> "CheckpointReader":
        """Reads the manifest and compares the sizes of all files.

        Raises:
            DamagedCheckpoint: manifest or files are not as they were written; names the file.
            InputError: no checkpoint, or of another version.
        """
        reader = cls(folder, read_manifest(folder))
        sizes = {**reader.manifest.shards, **{name: file.bytes for name, file in reader.manifest.files.items()}}
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file():
                raise DamagedCheckpoint(f"{path}: missing; expected the file that the manifest names")
            found = path.stat().st_size
            if found != size:
                raise DamagedCheckpoint(f"{path}: {found} bytes; expected {size}, the file was cut off or changed")
        return reader

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._files.__exit__(kind, error, trace)

    @property
    def header(self) -> CheckpointHeader:
        return self.manifest.header

    def config(self) -> Config:
        """The configuration it was written with; keys that are newer take their defaults, and those that were renamed
        have their present names. Raises InputError where it is none.
        """
        try:
            return config_from_dict(with_new_names(self.header.config))
        except InputError as error:
            raise InputError(f"{self.folder}: its configuration is not one of this release: {error}") from None

    def names(self) -> List[str]:
        """Of all tensors, in the order of the manifest; single numbers are in `header.scalars`."""
        return list(self.manifest.tensors)

    def entry(self, name: str) -> TensorEntry:
        """Raises InputError where there is no such tensor."""
        if name not in self.manifest.tensors:
            raise InputError(f"{self.folder}: no tensor {name}; expected a checkpoint of the same model and router")
        return self.manifest.tensors[name]

    def read(self, name: str, part: Optional[ShardSpec] = None) -> np.ndarray:
        """The tensor, or `part` of it; of the stored parts only those that it overlaps are read, where the cuts agree.

        Raises:
            DamagedCheckpoint: a byte of it is not as it was written.
            InputError: no such tensor, or it has no such part.
        """
        entry = self.entry(name)
        stored = len(entry.parts)
        if part is None:
            return self._join(name, entry, 0, stored)
        part.shape_of(entry.shape)
        alike = (part.axis, part.blocks) == (entry.axis, entry.blocks)
        if alike and stored % part.num_shards == 0:
            share = stored // part.num_shards
            return self._join(name, entry, part.shard * share, share)
        if alike and part.num_shards % stored == 0:
            share = part.num_shards // stored
            piece = self._join(name, entry, part.shard // share, 1)
            return ShardSpec(part.axis, part.shard % share, share, part.blocks).cut(piece)
        return part.cut(self._join(name, entry, 0, stored))

    def read_file(self, name: str) -> Optional[bytes]:
        """The content of a file that the checkpoint carries besides its shards; None where it carries none of that
        name.

        Raises DamagedCheckpoint: it is not as it was written.
        """
        stored = self.manifest.files.get(name)
        if stored is None:
            return None
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedCheckpoint(
                f"{path}: cannot be read ({error.strerror}); expected the file that the manifest names"
            ) from None
        if crc32(content) != stored.checksum:
            raise DamagedCheckpoint(f"{path}: another checksum than the manifest says; the file is damaged")
        return content

    def verify(self) -> Iterator[str]:
        """Reads everything, and yields the name of each tensor that is as it was written. Raises DamagedCheckpoint at
        the first tensor or file that is not.
        """
        for name in self.manifest.files:
            self.read_file(name)
        for name, entry in self.manifest.tensors.items():
            for index in range(len(entry.parts)):
                self._stored(name, entry, index)
            yield name

    def _join(self, name: str, entry: TensorEntry, start: int, count: int) -> np.ndarray:
        """Neighbouring stored parts, put together."""
        found = [self._stored(name, entry, index) for index in range(start, start + count)]
        return found[0] if count == 1 else ShardSpec(entry.axis, 0, count, entry.blocks).join(found)

    def _stored(self, name: str, entry: TensorEntry, index: int) -> np.ndarray:
        part = entry.parts[index]
        array = self._files.read(part.shard, entry.key(name, index), part.checksum)
        expected = entry.shape
        if len(entry.parts) > 1:
            expected = ShardSpec(entry.axis, index, len(entry.parts), entry.blocks).shape_of(entry.shape)
        if array.shape != expected or NAMES_OF.get(array.dtype) != entry.dtype:
            raise DamagedCheckpoint(
                f"{self.folder / part.shard}: tensor {name} is {array.dtype} {list(array.shape)}; the manifest says "
                f"{entry.dtype} {list(expected)}"
            )
        return array
