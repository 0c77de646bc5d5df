"""Texts with `{field}` in them. `{{` and `}}` stand for braces."""

from string import Formatter
from typing import Any, List, Mapping, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.data.jsonl import check_text


class Template:
    """A text whose fields are filled in with an example's values.

    Args:
        text: the template.
        key: of the task file, for messages.

    Raises InputError: braces that do not match, or more than a name in them.
    """

    def __init__(self, text: str, key: str) -> None:
        self._key = key
        self._parts: List[Tuple[str, str]] = []  # text, then a field's name or nothing
        try:
            for before, name, form, conversion in Formatter().parse(text):
                if name is not None and (form or conversion or not name.isidentifier()):
                    raise ValueError(f"{{{name}}} holds more than a field's name")
                self._parts.append((before, name or ""))
        except ValueError as error:
            raise InputError(
                f"{key}: {error}; expected text with fields as in {{question}}, and {{{{ or }}}} for braces"
            ) from None

    @property
    def fields(self) -> List[str]:
        return [name for _, name in self._parts if name]

    def render(self, values: Mapping[str, Any], where: str) -> str:
        """Raises InputError, which begins with `where`: a field is missing, is neither text nor a number, or holds half
        of a surrogate pair.
        """
        text = "".join(before + (_text(values, name, where, self._key) if name else "") for before, name in self._parts)
        return check_text(text, f"{where}: {self._key}")


def _text(values: Mapping[str, Any], name: str, where: str, key: str) -> str:
    if name not in values:
        raise InputError(
            f"{where}: no field {name}, which {key} asks for; found {', '.join(map(str, values)) or 'none'}"
        )
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(
            f"{where}: field {name}, which {key} asks for, is a {type(value).__name__}; expected text or a number"
        )
    return str(value)
