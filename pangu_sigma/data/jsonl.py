"""Files of one record or one text a line, as `prepare`, `eval` and `generate` read them.

A line ends with a line feed, and with a carriage return before it on other systems; U+2028, U+0085 and the like are
characters of a text. A byte order mark is no part of a line. Blank lines are passed over.
"""

from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import decode, has_lone_surrogate, parse_json

SUFFIXES = frozenset({".jsonl", ".ndjson"})
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


class Record(NamedTuple):
    """One JSON object of a file; `where` is its file and line."""

    values: Dict[str, Any]
    where: str

    def text(self, name: str, named_by: Optional[str] = None) -> str:
        """A field that must be there and hold text.

        Args:
            name: the field.
            named_by: the configuration key that names another field, for the message; None: there is none.

        Raises InputError: it is missing or no string, or holds half of a surrogate pair.
        """
        if name not in self.values:
            fields = ", ".join(self.values) or "none"
            another = f"; {named_by} names another" if named_by else ""
            raise InputError(
                f"{self.where}: field `{name}` is missing; expected a string (fields found: {shorten(fields)}){another}"
            )
        value = self.values[name]
        if not isinstance(value, str):
            raise InputError(f"{self.where}: field `{name}` is {kind(value)}; expected a string")
        return check_text(value, f"{self.where}: field `{name}`")

    def optional_text(self, name: str) -> Optional[str]:
        """The same of a field that may be missing or null, which are both None."""
        return None if self.values.get(name) is None else self.text(name)


def is_jsonl(path: Path) -> bool:
    """Whether a file's name says that it holds a JSON object a line."""
    return path.suffix.lower() in SUFFIXES


def read_lines(path: Path, expected: str) -> Iterator[Tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each with where it stands. A large file is never held whole.

    Args:
        path: the file.
        expected: what the file should be, for messages.

    Raises:
        InputError: the file cannot be read, or a line (named) is not UTF-8.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path}:{number}"
                text = decode(line, where, expected)
                if text.strip():
                    yield text.rstrip("\r\n"), where
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); expected {expected}") from None


def read_records(path: Path, expected: str) -> Iterator[Record]:
    """The objects of a file of JSON, one a line. See `read_lines`.

    Raises:
        InputError: as `read_lines`; a line (named) is no JSON, or no object.
    """
    for line, where in read_lines(path, expected):
        values = parse_json(line, where, expected, is_line=True)
        if not isinstance(values, dict):
            raise InputError(f"{where}: found {kind(values)}; expected {expected}")
        yield Record(values, where)


def check_text(text: str, where: str) -> str:
    """The text. Raises InputError, which begins with `where`: it holds half of a surrogate pair, as no file of text
    can.
    """
    if has_lone_surrogate(text):
        raise InputError(
            f"{where} holds half of a surrogate pair or bytes that are no text; expected characters that UTF-8 can hold"
        )
    return text


def kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    return _KINDS.get(type(value), "null")


def shorten(text: str, most: int = 200) -> str:
    """As much of a text as a message has room for."""
    return text if len(text) <= most else text[: most - 3] + "..."
