"""Writing files so that nothing is lost: a file holds its old content or all of the new one, a new folder appears whole
or not at all, and what this program did not write is neither removed nor overwritten.

Temporary names are `.writing-` and eight hexadecimal digits, made exclusively. A folder under such a name is held by a
lock of the operating system while its writer lives, so that what a killed writer left is told from what a living one is
at work on.
"""

import fcntl
import os
import re
import secrets
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Union

from locmoe_ops.errors import InputError

TEMPORARY = ".writing-"  # how temporary names begin
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{8}}")
_HEAD_BYTES = 4096  # a marker stands at the beginning of a file


def temporary_path(folder: Path) -> Path:
    """A name in `folder` that nobody has."""
    return folder / f"{TEMPORARY}{secrets.token_hex(4)}"


def write_atomically(path: Path, content: Union[str, bytes]) -> None:
    """Replaces the file's content by all of `content`, or, where that fails (OSError), leaves everything as it was.

    A symbolic link stays one: what it names is replaced. A lone surrogate in text, as names of folders in another
    encoding hold, is written as an escape.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_path(path.parent)
    whole = content if isinstance(content, bytes) else content.encode("utf-8", errors="backslashreplace")
    try:
        with open(temporary, "xb") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(option: str, path: Path, markers: Sequence[bytes]) -> None:
    """Raises InputError where `path` is there and does not begin like a file that this program writes.

    Args:
        option: what the user gave the path by, for the message.
        path: the file.
        markers: bytes of which one stands in the first 4 KiB of every file of this kind (of a PDF file, in the last).
            An empty file is nobody's loss.
    """
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise InputError(
            f"{option} {path}: cannot be written (is a directory); expected a file name in a writable folder"
        )
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(b"%PDF"):  # which names its maker at its end
                file.seek(max(0, os.path.getsize(path) - _HEAD_BYTES))
                head += file.read(_HEAD_BYTES)
    except OSError as error:
        raise InputError(
            f"{option} {path}: cannot be read ({_reason(error)}); expected a file that this program wrote, or a new "
            "name"
        ) from None
    # Of what was cut off there may be less than the marker.
    if not any(marker in head or marker.startswith(head) for marker in markers):
        raise InputError(f"{option} {path}: is there already, and pangu-sigma did not write it; expected another name")


def write_output(option: str, path: Path, content: Union[str, bytes], markers: Sequence[bytes]) -> None:
    """Writes a file that the user named, and the folders above it.

    Args:
        option, path, markers: as of `check_output`.
        content: all of it; text is written as UTF-8.

    Raises InputError: as `check_output`, or the disk refuses.
    """
    check_output(option, path, markers)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise InputError(
            f"{option} {path}: cannot be written ({_reason(error)}); expected a file name in a writable folder"
        ) from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# ---- folders


def foreign_files(folder: Path, own: Sequence[str]) -> List[Path]:
    """What lies below `folder` and is no regular file whose relative path matches one of the patterns `own` (`*`
    matches `/` too).

    Folders count by what is in them; a symbolic link is foreign wherever it points.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*files, *links]:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file() or not any(fnmatchcase(relative, pattern) for pattern in own):
                found.append(path)
    return sorted(found)


def remove_folder(folder: Path, own: Sequence[str]) -> bool:
    """Removes a folder that holds nothing but this program's files, as `foreign_files` tells them; leaves it whole
    otherwise.

    Returns whether it is gone. A file that appears meanwhile stays, with its folder.
    """
    if folder.is_symlink() or foreign_files(folder, own):
        return False
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            if any(fnmatchcase((Path(parent) / name).relative_to(folder).as_posix(), pattern) for pattern in own):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(parent, name))
        for name in folders:
            _remove_if_empty(Path(parent) / name)
    return _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> bool:
    try:
        os.rmdir(folder)
    except OSError:
        return not folder.exists()
    return True


def set_aside(path: Path, suffix: str = ".aside") -> Path:
    """Renames what is in the way to the first free name `path` + suffix, suffix2, ...; returns that name."""
    number, target = 1, path.with_name(path.name + suffix)
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}{suffix}{number}")
    os.rename(path, target)
    return target


@contextmanager
def writing_folder(parent: Path, own: Sequence[str]) -> Iterator[Path]:
    """A new folder in `parent` under a temporary name, gone after the block unless the block renamed it.

    Args:
        own: patterns of the files that will be written into it, as `foreign_files` takes them.

    Raises OSError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, own)
    folder = temporary_path(parent)
    folder.mkdir()
    holder = _hold(folder)
    try:
        yield folder
    finally:
        try:
            if folder.is_dir():
                remove_folder(folder, own)
        finally:
            if holder is not None:
                os.close(holder)


def abandoned(parent: Path) -> List[Path]:
    """Folders in `parent` under temporary names whose writers are gone."""
    found = []
    for path in sorted(parent.glob(f"{TEMPORARY}*")):
        if _TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            holder = _hold(path)
            if holder is not None:
                os.close(holder)
                found.append(path)
    return found


def remove_abandoned(parent: Path, own: Sequence[str]) -> None:
    """Removes what killed writers of such files left in `parent`."""
    for path in abandoned(parent):
        remove_folder(path, own)


def _hold(folder: Path) -> Optional[int]:
    """A descriptor that locks the folder until it is closed; None where another process has it, or the file system has
    no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def new_folder(target: Path, own: Sequence[str]) -> Iterator[Path]:
    """A folder to fill, which gets the name `target` when the block ends well, and is gone otherwise.

    Raises OSError: `target` has come to be something other than an empty folder, which stays as it is; or the disk
    refuses.
    """
    with writing_folder(target.parent, own) as folder:
        yield folder
        sync_folder(folder)
        os.rename(folder, target)  # of a folder: refuses whatever is there but an empty folder
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk, where the system lets folders be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Union[str, Path]) -> List[Path]:
    """Makes a folder and those above it that are missing; returns what it made, the lowest first. Raises OSError."""
    folder, missing = Path(folder), []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
    return missing
