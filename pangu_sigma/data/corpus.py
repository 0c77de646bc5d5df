"""Reads a domain's documents from a folder of text files, one text file, or JSONL; and cuts long ones into pieces."""

import json
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional, Set

from locmoe_ops.errors import InputError

TEXT_SUFFIXES = frozenset(
    ".txt .text .md .rst .tex .html .py .c .h .cc .cpp .hpp .cu .java .js .ts .go .rs .rb .sh .sql".split()
)
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})


class Document(NamedTuple):
    text: str
    where: str  # file, or file:line, for messages


def read_documents(domain: str, source: str, max_bytes: Optional[int] = None, key: str = "data.prepare.sources.") -> Iterator[Document]:
    """Documents of `source` in a fixed order: files by path, JSONL by line.

    Records of a JSONL file that name another `domain` are passed over, so that one file can serve several domains.
    `max_bytes`: end after this many bytes of UTF-8 text; the document that reaches the limit is cut there. `key`: stands before the domain
    in messages, where the user named the source.

    Raises:
        InputError: a missing, unreadable, empty or malformed file (named, with its line), or no document at all.
    """
    others: Set[str] = set()
    remaining = max_bytes
    found = False
    for path in _files(key + domain, source):
        for document in _read_file(path, domain, others):
            found = True
            if remaining is None:
                yield document
                continue
            size = len(document.text.encode("utf-8"))
            yield document if size <= remaining else Document(prefix(document.text, remaining), document.where)
            remaining -= size
            if remaining <= 0:
                return
    if not found:
        hint = f" (it holds records of {', '.join(sorted(others))})" if others else ""
        raise InputError(f"{source}: no documents of domain '{domain}'{hint}; expected at least one")


def cut(text: str, limit: int) -> List[str]:
    """Consecutive pieces of `text` of at most `limit` (at least 4) UTF-8 bytes, which join to `text`.

    Cut at line ends, and inside a line only where it alone is longer than `limit`.
    """
    pieces: List[str] = []
    current: List[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        for part in _cut_line(line, limit):
            part_size = len(part.encode("utf-8"))
            if size + part_size > limit and current:
                pieces.append("".join(current))
                current, size = [], 0
            current.append(part)
            size += part_size
    if current:
        pieces.append("".join(current))
    return pieces


def prefix(text: str, limit: int) -> str:
    """The longest prefix of at most `limit` UTF-8 bytes, but at least one character."""
    return text[:limit].encode("utf-8")[:limit].decode("utf-8", errors="ignore") or text[:1]


def _cut_line(line: str, limit: int) -> Iterator[str]:
    data = line.encode("utf-8")
    start = 0
    while start < len(data):
        end = min(start + limit, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        yield data[start:end].decode("utf-8")
        start = end


def _files(key: str, source: str) -> List[Path]:
    path = Path(source)
    if not path.exists():
        raise InputError(
            f"{key}: '{source}' does not exist; expected a folder or a file of text"
        )
    known = TEXT_SUFFIXES | JSONL_SUFFIXES
    if path.is_file():
        if path.suffix.lower() not in known:
            raise InputError(
                f"{key}: '{source}' has an unknown type; expected a folder, "
                f"a .jsonl file or a text file such as .txt"
            )
        return [path]
    files = [p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file() and not p.name.startswith(".")]
    if not files:
        raise InputError(
            f"{key}: no text files in '{source}'; expected *.txt, *.md, *.py, *.jsonl ..."
        )
    return sorted(files, key=lambda p: p.relative_to(path).as_posix())


def _read_file(path: Path, domain: str, others: Set[str]) -> Iterator[Document]:
    if path.suffix.lower() in JSONL_SUFFIXES:
        yield from _read_jsonl(path, domain, others)
    else:
        text = _decode(_read_bytes(path), str(path))
        yield Document(_nonempty(text, str(path)), str(path))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a readable text file") from None


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}); expected UTF-8 text"
        ) from None


def _nonempty(text: str, where: str) -> str:
    if not text.strip():
        raise InputError(f"{where}: holds no text; expected text, or remove it")
    return text


def _read_jsonl(path: Path, domain: str, others: Set[str]) -> Iterator[Document]:
    empty = True
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                empty = False
                document = _parse_record(line, f"{path}:{number}", domain, others)
                if document is not None:
                    yield document
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a readable JSONL file") from None
    if empty:
        raise InputError(f"{path}: holds no records; expected one JSON object a line")


def _parse_record(line: bytes, where: str, domain: str, others: Set[str]) -> Optional[Document]:
    text = _decode(line, where)
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise InputError(f"{where}: broken JSON ({reason}); expected one object with a `text` field") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: found {_kind(record)}; expected an object with a `text` field")
    if "text" not in record:
        raise InputError(
            f"{where}: field `text` is missing; expected a string (fields found: {', '.join(record) or 'none'})"
        )
    named = _string(record.get("domain", domain), "domain", where)
    if named != domain:
        others.add(named)
        return None
    return Document(_nonempty(_string(record["text"], "text", where), where), where)


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: field `{name}` is {_kind(value)}; expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: field `{name}` holds half of a surrogate pair; expected valid Unicode") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
