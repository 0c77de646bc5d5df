"""Putting prepared data into their folder: only files that an earlier manifest lists are replaced, all others stay.

1. write    into `.writing-XXXXXXXX` inside the folder
2. commit   rename it to `.publish-XXXXXXXX`: from here on the new data are whole
3. move     each file to its place; remove what the old manifest lists and the new one does not; move the manifest

Cut off in 1, the next `prepare` removes what is left; cut off in 3, it finishes the moving first.
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.data.manifest import (
    FORMAT,
    NAME,
    SPLITS,
    TOKEN_COUNTS,
    TOKENIZERS,
    FileEntry,
    describe_file,
    records_name,
)
from pangu_sigma.runtime.files import remove_folder, set_aside, sync_folder, writing_folder
from pangu_sigma.runtime.messages import log

OWN = (
    NAME,
    *TOKENIZERS,
    TOKEN_COUNTS,
    "*.mindrecord",
    "*.mindrecord.db",
    "*.mindrecord.db-journal",
    *(f"{name}.writing" for name in TOKENIZERS),
)
_COMMITTED = ".publish-"


def check_target(target: Path, domains: Sequence[str]) -> None:
    """Raises InputError where the folder `target` is no place for prepared data of these domains: it holds files but no
    manifest that `prepare` wrote, or something that `prepare` did not write has the name of a file that it is going to
    write.
    """
    listed = listed_files(target)
    records = [records_name(split, domain) + end for split in SPLITS for domain in domains for end in ("", ".db")]
    for name in (NAME, *TOKENIZERS, TOKEN_COUNTS, *records):
        if name not in listed and os.path.lexists(target / name):
            raise InputError(_in_the_way(target / name))


def listed_files(target: Path) -> Dict[str, FileEntry]:
    """What the manifest in `target` lists, of whatever version it is, with the manifest itself (of which it cannot know
    the content).

    Raises InputError where the folder holds files but no manifest that prepare wrote.
    """
    if not target.is_dir() or not any(path.name[0] != "." for path in target.iterdir()):
        return {}
    try:
        content = json.loads((target / NAME).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError
        listed = {
            str(name): FileEntry(int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"data.path: '{target}' holds files, but no {NAME} that prepare wrote; expected a new or prepared folder"
        ) from None
    return {NAME: FileEntry(0, ""), **{name: entry for name, entry in listed.items() if "/" not in name}}


@contextmanager
def data_folder(target: Path) -> Iterator[Path]:
    """A folder to write prepared data and their manifest into, which take their places in `target` when the block ends
    well.

    Raises:
        InputError: something that prepare did not write has come to be in the way. OSError: the disk refuses.
    """
    with writing_folder(target, OWN) as folder:
        yield folder
        sync_folder(folder)
        committed = folder.with_name(_COMMITTED + folder.name.rpartition("-")[2])
        os.rename(folder, committed)
    try:
        _move(committed, target)
    except InputError:
        remove_folder(committed, OWN)
        raise


def finish_publishing(target: Path) -> None:
    """Finishes what an earlier `prepare` was cut off in, if it had committed its data."""
    for committed in sorted(target.glob(f"{_COMMITTED}*")):
        if (committed / NAME).is_file():
            _move(committed, target)
        else:  # the manifest, the last to go, has gone
            remove_folder(committed, OWN)


def _move(committed: Path, target: Path) -> None:
    """Moves files to their places. What the old manifest lists but is not as that says is set aside.

    Raises InputError, before anything is moved, where a file that no manifest lists is in the way.
    """
    new = listed_files(committed)
    old = listed_files(target) if (target / NAME).exists() else {}
    waiting = [name for name in sorted(new, key=lambda name: name == NAME) if (committed / name).exists()]
    for name in waiting:
        if name not in old and os.path.lexists(target / name):  # the manifest is among `old` if it is one
            raise InputError(_in_the_way(target / name))
    for name in waiting[:-1]:
        if os.path.lexists(target / name) and not _is_as_listed(target / name, old[name]):
            log.warning("%s is not as prepare wrote it; it is now %s", target / name, set_aside(target / name).name)
        os.replace(committed / name, target / name)
    for name in old.keys() - new.keys():
        if _is_as_listed(target / name, old[name]):
            (target / name).unlink()
    sync_folder(target)
    os.replace(committed / NAME, target / NAME)
    sync_folder(target)
    remove_folder(committed, OWN)


def _is_as_listed(path: Path, entry: FileEntry) -> bool:
    return (
        path.is_file() and not path.is_symlink() and path.stat().st_size == entry.size and describe_file(path) == entry
    )


def _in_the_way(path: Path) -> str:
    return (
        f"data.path: '{path}' is in the way, and prepare did not write it; expected another folder, or that moved away"
    )
