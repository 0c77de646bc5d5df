"""Reads a domain's documents from a folder of text files, one text file, JSONL or Parquet; and cuts long ones into
pieces.
"""

import unicodedata
from pathlib import Path
from typing import Iterable, Iterator, List, NamedTuple, Optional, Set

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import read_text
from pangu_sigma.data import jsonl, parquet, sources
from pangu_sigma.data.sources import SourceCount, list_files


class Document(NamedTuple):
    text: str
    where: str  # file, or file:line, for messages


class RecordKeys(NamedTuple):
    """Names of the fields of a JSONL record, or the columns of a Parquet file, that hold a document and its domain."""

    text: str = "text"
    domain: str = "domain"


NAMED_TEXT = RecordKeys()


def read_documents(
    domain: str,
    source: str,
    max_bytes: Optional[int] = None,
    key: str = "data.prepare.sources.",
    count: Optional[SourceCount] = None,
    keys: RecordKeys = NAMED_TEXT,
) -> Iterator[Document]:
    """Documents of `source` in a fixed order: files by path, JSONL by line, Parquet by row. `pangu_sigma.data.sources`
    says which files.

    Args:
        domain: whose documents. Records of a JSONL or Parquet file that name another one are passed over, so that one
            file can serve several.
        source: path of a folder or a file.
        max_bytes: end after this many bytes of UTF-8 text; the document that reaches the limit is cut there.
        key: stands before the domain in messages, where the user named the source.
        count: takes how many files were read, and what was passed over.
        keys: the fields of a record that are read.

    Raises:
        InputError: a missing, unreadable or malformed file (named, with its line), or no document at all.
    """
    wanted, count = count is not None, count or SourceCount()
    files = list_files(key + domain, source, count.files_passed_over if wanted else None)
    others: Set[str] = set()
    remaining = max_bytes
    found = False
    for number, path in enumerate(files):
        for document in _read_file(path, domain, others, count, keys):
            found = True
            if remaining is None:
                yield document
                continue
            size = len(document.text.encode("utf-8"))
            yield document if size <= remaining else Document(prefix(document.text, remaining), document.where)
            remaining -= size
            if remaining <= 0:
                for left in files[number + 1 :]:
                    count.files_passed_over.add(sources.BEYOND_LIMIT, left.name)
                return
    if not found:
        held = f" (it holds records of {', '.join(sorted(others))})" if others else ""
        left_out = f"; {count.describe()}" if count.describe() else ""
        raise InputError(f"{source}: no documents of domain '{domain}'{held}; expected at least one{left_out}")


def cut(text: str, limit: int) -> List[str]:
    """Consecutive pieces of `text` of at most `limit` (at least 4) UTF-8 bytes, which join to `text`.

    Cut at line ends, and inside a line only where it alone is longer than `limit`.
    """
    pieces: List[str] = []
    current: List[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        data, start = line.encode("utf-8"), 0
        while start < len(data):
            end = min(start + limit, len(data))
            while end < len(data) and data[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
            if size + end - start > limit and current:
                pieces.append("".join(current))
                current, size = [], 0
            current.append(data[start:end].decode("utf-8"))
            size += end - start
            start = end
    if current:
        pieces.append("".join(current))
    return pieces


def prefix(text: str, limit: int) -> str:
    """The longest prefix of at most `limit` UTF-8 bytes, but at least one character."""
    return text[:limit].encode("utf-8")[:limit].decode("utf-8", errors="ignore") or text[:1]


def _read_file(path: Path, domain: str, others: Set[str], count: SourceCount, keys: RecordKeys) -> Iterator[Document]:
    """The documents of one file, which counts as read, or as passed over where there is neither text nor a record in
    it.
    """
    records: Iterable[jsonl.Record]
    if jsonl.is_jsonl(path):
        records = jsonl.read_records(path, f"one object with a `{keys.text}` field")
    elif parquet.is_parquet(path):
        records = parquet.read_records(path, keys.text, keys.domain)
    else:
        text = read_text(path, "UTF-8 text")
        if text.strip():
            count.files += 1
            yield Document(text, str(path))
        else:
            count.files_passed_over.add(sources.EMPTY, path.name)
        return
    any_record = False
    for record in records:
        count.files += not any_record
        any_record = True
        yield from _document(record, domain, others, count, keys)
    if not any_record:
        count.files_passed_over.add(sources.EMPTY, path.name)


def _document(
    record: jsonl.Record, domain: str, others: Set[str], count: SourceCount, keys: RecordKeys
) -> Iterator[Document]:
    """The document of a record, unless it is another domain's or holds no text. A domain that is null is none."""
    named = record.optional_text(keys.domain)
    count.records += 1
    count.labelled_records += named is not None
    if named is not None and unicodedata.normalize("NFC", named) != domain:  # as prepare has its domains' names
        others.add(str(named))
        count.records_passed_over.add(sources.OTHER_DOMAIN, record.where)
        return
    text = record.text(keys.text, "data.prepare.text_key")
    if text.strip():
        yield Document(text, record.where)
    else:
        count.records_passed_over.add(sources.EMPTY, record.where)
