"""Which files of a source are read: one rule, under which every file is either read or counted with the reason why not.

- A source is a file, or a folder with all that lies below it. Linked files and folders are followed; a folder that
  several paths lead to, or that lies inside itself, is gone through once.
- Files of known types are read (TEXT_SUFFIXES, JSON of one object a line, and Parquet), by path.
- Passed over, below the folder that the source names: what is hidden (its name, or that of a folder around it, begins
  with a dot), files of other types, broken links, pipes and other things that are no files, and further paths to a file
  that is read already.
- A file or a record without any text is passed over too.
"""

import heapq
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Counter as CounterOf
from typing import Dict, Iterator, List, NamedTuple, Optional, Set

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import printable
from pangu_sigma.data import jsonl, parquet

TEXT_SUFFIXES = frozenset(
    ".txt .text .md .rst .tex .html .py .c .h .cc .cpp .hpp .cu .java .js .ts .go .rs .rb .sh .sql".split()
)
HIDDEN, BROKEN_LINK, NO_FILE = "hidden", "link that cannot be followed", "no regular file"
AGAIN, EMPTY = "read under another path", "empty"
BEYOND_LIMIT = "beyond data.prepare.max_bytes_per_domain"
OTHER_TYPE = "of another type"
OTHER_DOMAIN = "of another domain"  # of records
_NAMED = 3  # examples of each reason, for messages
_SUFFIX = re.compile(r"\.[a-z0-9_+-]*[a-z_+-][a-z0-9_+-]*")
_PLAIN, _LINKED, _HIDDEN = range(3)  # the order in which folders are gone through


@dataclass
class Tally:
    """How many were passed over, by reason, with the first few names of each reason."""

    counts: CounterOf[str] = field(default_factory=Counter)
    names: Dict[str, List[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        names = self.names.setdefault(reason, [])
        if len(names) < _NAMED:
            names.append(printable(name))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def describe(self, most: int = 8) -> str:
        """Reasons by count, the most frequent first, each with its first names."""
        ranked = self.counts.most_common()
        parts = []
        for reason, count in ranked[:most]:
            more = ", ..." if count > _NAMED else ""
            parts.append(f"{count} {reason} ({', '.join(self.names[reason])}{more})")
        rest = sum(count for _, count in ranked[most:])
        return "; ".join([*parts, f"{rest} for other reasons"] if rest else parts)


@dataclass
class SourceCount:
    """What became of the files of a source, and of the records of its JSONL and Parquet files.

    Attributes:
        files: that documents were read from.
        files_passed_over, records_passed_over: the others.
        records, labelled_records: of JSONL and Parquet files that were looked at, and those of them that name a domain.
    """

    files: int = 0
    files_passed_over: Tally = field(default_factory=Tally)
    records_passed_over: Tally = field(default_factory=Tally)
    records: int = 0
    labelled_records: int = 0

    def describe(self) -> str:
        """Everything that was passed over, or nothing where nothing was."""
        found = [("file", self.files_passed_over), ("record", self.records_passed_over)]
        return "; ".join(
            f"passed over {tally.total} {name}{'' if tally.total == 1 else 's'}: {tally.describe()}"
            for name, tally in found
            if tally.total
        )


class _Entry(NamedTuple):
    """What is no folder. path: below the source. mode: of what a link leads to; 0: it leads to nothing."""

    path: str
    is_link: bool
    mode: int


def list_files(key: str, source: str, passed_over: Optional[Tally] = None) -> List[Path]:
    """The files of a source that are read, in the order of their paths.

    Args:
        key: what stands before the source in messages: where the user named it.
        source: path of a file or a folder.
        passed_over: takes the other files. None: nobody asks for them, and hidden folders are left alone.

    Raises:
        InputError: the source does not exist, is a file of another type, or is a folder without a file that is read.
    """
    root = Path(source)
    if not root.exists():
        raise InputError(f"{key}: '{source}' does not exist; expected a folder or a file of text")
    if not root.is_dir():
        if not root.is_file():
            raise InputError(
                f"{key}: '{root}' is no regular file, and cannot be read more than once; expected a folder or a file "
                "of text"
            )
        if _type(str(root)):
            raise InputError(
                f"{key}: '{root}' has an unknown type; expected a folder, a .jsonl or .parquet file, or a text file "
                "such as .txt"
            )
        return [root]
    entries = list(_entries(key, root, with_hidden=passed_over is not None))
    passed_over = Tally() if passed_over is None else passed_over
    files: List[str] = []
    seen: Set[str] = set()
    # Each real file is read once, and by a link only if there is no other way.
    for entry in sorted(entries, key=lambda entry: entry.is_link):
        reason = _reason(entry)
        if not reason:
            real = os.path.realpath(root / entry.path)
            reason = AGAIN if real in seen else ""
            seen.add(real)
        if reason:
            passed_over.add(reason, entry.path)
        else:
            files.append(entry.path)
    if not files:
        others = f" (passed over: {passed_over.describe()})" if passed_over.total else ""
        raise InputError(
            f"{key}: no text files in '{source}'; expected *.txt, *.md, *.py, *.jsonl, *.parquet ...{others}"
        )
    return [root / name for name in sorted(files)]


def _entries(key: str, root: Path, with_hidden: bool) -> Iterator[_Entry]:
    """All entries below `root` that are no folders, of each folder once: by a path of its own before one through links,
    and by a hidden path last.
    """
    waiting, gone_through = [(_PLAIN, "")], set()
    while waiting:
        rank, below = heapq.heappop(waiting)
        real = os.path.realpath(root / below)
        if real in gone_through:
            continue
        gone_through.add(real)
        try:
            listed = sorted(os.scandir(root / below), key=lambda entry: entry.name)
        except OSError as error:
            if rank != _HIDDEN:
                raise InputError(
                    f"{key}: '{root / below}' cannot be listed ({error.strerror}); expected a readable folder"
                ) from None
            yield _Entry(below, False, 0)
            continue
        for entry in listed:
            path, is_link = f"{below}/{entry.name}".lstrip("/"), entry.is_symlink()
            try:
                mode = entry.stat().st_mode
            except OSError:
                mode = 0
            own_rank = _HIDDEN if entry.name.startswith(".") else _LINKED if is_link else _PLAIN
            if not stat.S_ISDIR(mode):
                yield _Entry(path, is_link, mode)
            elif with_hidden or own_rank != _HIDDEN:
                heapq.heappush(waiting, (max(rank, own_rank), path))


def _reason(entry: _Entry) -> str:
    """Why a file is passed over for what it is; nothing if it is to be read."""
    if any(name.startswith(".") for name in entry.path.split("/")):
        return HIDDEN
    if not entry.mode:
        return BROKEN_LINK
    return _type(entry.path) if stat.S_ISREG(entry.mode) else NO_FILE


def _type(path: str) -> str:
    """What is said of a file of another type; nothing of one that is read."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in TEXT_SUFFIXES | jsonl.SUFFIXES | parquet.SUFFIXES:
        return ""
    return f"{OTHER_TYPE}, {suffix}" if _SUFFIX.fullmatch(suffix) and len(suffix) <= 12 else OTHER_TYPE
