"""JSON written by people and other programs: whole files whose values know their places, and single records of many.

Errors are `InputError`s of one line that name the file, the place in it, what was found and what was expected.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from locmoe_ops.errors import InputError

MOST_DIGITS = 4300  # of an integer: newer Pythons convert no longer ones
_KINDS = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}


class JsonValue:
    """A `value`, the `path` to it inside the file (as in `server_list[0].device`), and the name of the `file`.

    What is asked for and is not there, or is of another kind, is an InputError that names file, path, value and
    expectation.
    """

    def __init__(self, value: Any, path: str, file: str) -> None:
        self.value, self.path, self.file = value, path, file

    def __contains__(self, name: str) -> bool:
        return isinstance(self.value, dict) and name in self.value

    def require_object(self) -> None:
        """Raises InputError: the value is no object."""
        if not isinstance(self.value, dict):
            raise self.error("an object")

    def member(self, name: str) -> JsonValue:
        """The member of this name of an object."""
        self.require_object()
        if name not in self.value:
            raise self.problem(f"has no {name}; expected one")
        return JsonValue(self.value[name], f"{self.path}.{name}" if self.path else name, self.file)

    def optional(self, name: str) -> JsonValue | None:
        """The member of this name of an object; None if there is none."""
        self.require_object()
        return self.member(name) if name in self.value else None

    def items(self, what: str) -> list[JsonValue]:
        """The elements of a list that holds at least one; `what` names them."""
        if not isinstance(self.value, list) or not self.value:
            raise self.error(f"a list of {what}, at least one")
        return [JsonValue(value, f"{self.path}[{index}]", self.file) for index, value in enumerate(self.value)]

    def text(self) -> str:
        """A string that UTF-8 can hold."""
        if not isinstance(self.value, str):
            is_number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
            raise self.error("a string" + (f', as in "{self.value}"' if is_number else ""))
        if has_lone_surrogate(self.value):
            raise self.problem("holds half of a surrogate pair, expected characters that UTF-8 can hold")
        return self.value

    def number(self) -> int:
        """A string of at most 10 decimal digits, as an integer."""
        number = whole_number(self.text())
        if number is None:
            raise self.error('a string of digits, as in "0"')
        return number

    def error(self, expected: str) -> InputError:
        """An error that says what was found here and what was expected."""
        try:
            shown = json.dumps(self.value, ensure_ascii=False)
        except RecursionError:  # brackets nested as deeply as reading just allows
            shown = ""
        found = shown if 0 < len(shown) <= 60 else _KINDS.get(type(self.value), "a value")
        return self.problem(f"found {found}, expected {expected}")

    def problem(self, text: str) -> InputError:
        """An error that begins with file and path."""
        return InputError(f"{self.file}: {self.path + ': ' if self.path else ''}{text}")


def read_json(path: str | os.PathLike[str], expected: str) -> JsonValue:
    """The value that the file `path` holds; `expected` says in errors what should stand there.

    Raises:
        InputError: the file cannot be read, is empty or no JSON, or repeats a name in an object.
    """
    text = read_text(path, expected)
    if not text.strip():
        raise InputError(f"{path}: the file is empty, expected {expected}")
    return JsonValue(parse_json(text, str(path), expected), "", str(path))


def read_text(path: str | os.PathLike[str], expected: str) -> str:
    """The UTF-8 text of the file `path`, without a byte order mark; `expected` says in errors what should stand there.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read ({reason.lower()}), expected {expected}") from None
    return decode(data, str(path), expected)


def decode(data: bytes, where: str, expected: str) -> str:
    """The UTF-8 bytes `data` as text, without a byte order mark.

    Raises:
        InputError: they are not UTF-8; the message begins with `where` and says what was `expected`.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}), expected {expected}") from None


def parse_json(text: str, where: str, expected: str, is_line: bool = False) -> Any:
    """The value that a text spells in JSON.

    Args:
        text: the JSON.
        where: file, and line if it is one of many, which errors begin with.
        expected: what should stand there, which errors end with.
        is_line: the text is one record, a line of the file. Then NaN and Infinity are numbers, as Python writes them.

    Raises:
        InputError: it is no JSON, is nested too deeply, repeats a name in an object, or holds an integer of more than
            MOST_DIGITS digits.
    """
    constant = None if is_line else _constant
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_constant=constant)
    except json.JSONDecodeError as error:
        if is_line:
            reason = f"{error.msg.lower()}, column {error.colno}"
            raise InputError(f"{where}: broken JSON ({reason}); expected {expected}") from None
        raise InputError(
            f"{where}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg.lower()}), "
            f"expected {expected}"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        found = "broken JSON" if is_line else "not valid JSON"
        raise InputError(f"{where}: {found} ({reason}), expected {expected}") from None


def whole_number(text: str) -> int | None:
    """The number that at most 10 decimal digits spell; None if the text is something else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no UTF-8 file can hold: escapes of JSON and YAML can spell
    one (\\ud83d), and Python reads bytes of another encoding on the command line as such.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def printable(text: str) -> str:
    """The text with an escape (\\udce9) in place of each lone surrogate, such as file names of another encoding hold.
    Inside a string of JSON that escape stands for the surrogate itself.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Plain JSON keeps the last of two equal names, silently."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} is given twice in one object")
        result[name] = value
    return result


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
