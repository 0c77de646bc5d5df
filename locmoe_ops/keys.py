"""How configuration keys are declared: as fields of frozen dataclasses, with a meaning and limits."""

from dataclasses import field
from typing import Any


def key(default: Any, help: str, **limits: Any) -> Any:
    """A documented dataclass field; mutable defaults (sections, mappings) are given as factories.

    `limits`: `choices`, `minimum` (inclusive), `above` (exclusive), `maximum` (inclusive).
    """
    metadata = {"help": help, **limits}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
