"""Locks on folders: a run folder belongs to one job at a time, prepared data are not replaced while a job reads them.

The lock is one of the operating system (`flock` on the file `.pangu-sigma.lock`), which frees it when its holder is
gone, however it ended. The file says who has it: that is for messages only. Over NFS and on parallel file systems it is
as good as their `flock`; where there is none, a warning says that nothing keeps others out.
"""

import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import List, Optional, Type

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.files import make_folders
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.strict_json import dumps

FILE = ".pangu-sigma.lock"
_MOST_NOTE_BYTES = 4096
_NOTE_BYTES = 512
_POLL_S = 0.2
_SIGNING_S = 2.0  # in which whoever has just taken a lock has signed it, or has left again
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class FolderLock:
    """A context manager that holds a folder: alone, or shared with others that only read it.

    The exclusive lock makes the folder where it is missing. Whoever leaves last takes away the lock's file, and the
    folders that it made, unless something else has come to be in them. A shared lock holds nothing where it can neither
    make nor open the file, as in a folder of somebody else who never locked it.

    Args:
        folder: what to hold.
        option: the key or option that names the folder, for messages.
        shared: whether others may hold it too, if they are content to share it.
        wait_s: seconds to wait for the holder to leave.

    Attributes: descriptor, of the open file: whoever inherits it holds the lock too (None: nothing is held).

    Raises (on entry):
        InputError: another process holds the folder, or it cannot be made.
    """

    def __init__(self, folder: Path, option: str, shared: bool = False, wait_s: float = 0.0) -> None:
        self._folder = folder
        self._path = folder / FILE
        self._option = option
        self._shared = shared
        self._wait_s = wait_s
        self._made: List[Path] = []
        self.descriptor: Optional[int] = None

    def __enter__(self) -> "FolderLock":
        deadline = time.monotonic() + self._wait_s
        while not self._try():
            late = time.monotonic() - deadline
            try:
                holder = _read_note(self._path.read_bytes())
            except OSError:  # it has just left
                holder = None
            if holder is None and late >= _SIGNING_S:
                holder = "another process"
            if late >= 0 and holder:
                raise InputError(
                    f"{self._option}: {self._folder} is in use by {holder}; expected another folder, or to wait until "
                    "that has ended"
                )
            time.sleep(_POLL_S)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self.descriptor is None:
            return
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of a shared one: whether it is the last
            # While it is held: who waits for it sees that the name is another file's by then.
            self._path.unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()
        except OSError:
            pass  # others hold it, or something is in the folder
        os.close(self.descriptor)
        self.descriptor = None

    def _try(self) -> bool:
        """Takes the lock if it is free; True also where there is none to take."""
        descriptor = self._open()
        if descriptor is None:
            return True
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning("%s: its file system has no locks; nothing keeps a second job out of it", self._folder)
                self.descriptor = descriptor
                return True
            os.close(descriptor)
            return False
        try:
            named = os.path.samestat(os.fstat(descriptor), os.lstat(self._path))
        except OSError:
            named = False
        if not named:  # its last holder took the name away
            os.close(descriptor)
            return self._try()
        self.descriptor = descriptor
        self._sign(descriptor)
        return True

    def _open(self) -> Optional[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            if not self._shared:
                self._made += make_folders(self._folder)
            return os.open(self._path, flags, 0o666)
        except FileNotFoundError:
            return None if self._shared else self._open()  # its last holder has just taken the folder away
        except OSError as error:
            if not self._shared and self._folder.exists() and not self._folder.is_dir():
                raise InputError(f"{self._option}: {self._folder} is a file; expected a folder or a new name") from None
            if not self._shared:
                reason = (error.strerror or str(error)).lower()
                raise InputError(
                    f"{self._option}: cannot write in {self._folder} ({reason}); expected a writable folder"
                ) from None
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None

    def _sign(self, descriptor: int) -> None:
        before = os.pread(descriptor, _MOST_NOTE_BYTES, 0)
        if before and _read_note(before) is None:
            os.close(descriptor)
            self.descriptor = None
            raise InputError(
                f"{self._option}: {self._path} is there, and pangu-sigma did not write it; expected another folder"
            )
        note = {"host": socket.gethostname(), "process": os.getpid(), "since": datetime.now().isoformat(" ", "seconds")}
        try:
            # As long as any other note: one that is written over another, by a second reader too, leaves no mixture.
            os.pwrite(descriptor, dumps(note).ljust(_NOTE_BYTES).encode() + b"\n", 0)
        except OSError:
            pass  # read-only, or full: the lock holds without a note


def _read_note(content: bytes) -> Optional[str]:
    """Who holds a lock, in words; None where the content is no note of one."""
    try:
        note = json.loads(content)
        return f"process {int(note['process'])} on {note['host']} since {note['since']}"
    except (ValueError, KeyError, TypeError):
        return None
