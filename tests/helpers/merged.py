"""Configurations as nested mappings."""

from typing import Any, Dict, Mapping


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Dict[str, Any]:
    """`base` with the values of `changes`, section by section."""
    result = dict(base)
    for name, value in changes.items():
        result[name] = (
            merged(result[name], value)
            if isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
            else value
        )
    return result
