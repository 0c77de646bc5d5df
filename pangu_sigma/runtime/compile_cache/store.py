"""The folder in which compiled graphs are kept: one file a graph, named by its key, with a checksum.

A file appears whole or not at all, and is checked when it is read, so that any number of processes, of any jobs, may
use a folder at the same time. What is beyond `LARGEST_FOLDER` is removed when a graph is added, what was not used for
longest first, and with it what killed writers left.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import List, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.files import TEMPORARY, make_folders, temporary_path

SUFFIX = ".graph"
MAGIC = b"pangu-sigma compiled graph 1\n"
LARGEST_FOLDER = 4 * 2**30  # bytes
_CHECKSUM = hashlib.sha256().digest_size


class DamagedGraph(Exception):
    """A kept graph that is not what was written; the message names the file."""


class GraphStore:
    """Graphs in a folder, which is made.

    Args:
        folder: where they are.
        limit: most bytes of all graphs in it.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, limit: int = LARGEST_FOLDER) -> None:
        self.folder = folder
        self._limit = limit
        try:
            make_folders(folder)
            probe = temporary_path(folder)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"runtime.compile_cache {folder}: cannot be written ({error.strerror or error}); expected a writable "
                "folder, auto or none"
            ) from None

    def fetch(self, key: str, target: Path) -> bool:
        """Writes the graph of this `key` to the file `target`; False: there is none.

        Raises:
            DamagedGraph: there is one, but not as it was written; it is removed.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return False
        head = len(MAGIC) + _CHECKSUM
        if content[:head] != MAGIC + hashlib.sha256(content[head:]).digest():
            self.discard(key)
            raise DamagedGraph(str(path))
        target.write_bytes(content[head:])
        with suppress(OSError):  # it was used now
            os.utime(path)
        return True

    def keep(self, key: str, source: Path) -> None:
        """Adds the content of the file `source` under this `key`; a folder that takes no more is no error."""
        temporary = temporary_path(self.folder)
        with suppress(OSError):
            content = source.read_bytes()
            try:
                with open(temporary, "xb") as file:
                    file.write(MAGIC + hashlib.sha256(content).digest() + content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self._path(key))
            finally:
                temporary.unlink(missing_ok=True)
            self._make_room()

    def discard(self, key: str) -> None:
        """Removes the graph of this `key`, if it is there."""
        with suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _make_room(self) -> None:
        found: List[Tuple[float, int, Path]] = []
        for pattern in (f"*{SUFFIX}", f"{TEMPORARY}*"):
            for path in self.folder.glob(pattern):
                with suppress(OSError):
                    about = path.stat()
                    found.append((about.st_mtime, about.st_size, path))
        if sum(size for _, size, _ in found) <= self._limit:
            return
        found = [entry for entry in found if _is_own(entry[2])]
        beyond = sum(size for _, size, _ in found) - self._limit
        for _, size, path in sorted(found):
            if beyond <= 0:
                return
            with suppress(OSError):
                path.unlink()
                beyond -= size


def _is_own(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
