"""The configuration's keys as a JSON Schema (draft 7), by which editors complete, explain and check YAML files.

It says what the loader says of each key by itself - names, types, limits, choices - and not what keys mean together
(`pangu_sigma.config.validate`). What it refuses, the loader refuses.
"""

import dataclasses
from typing import Any, Dict, Mapping, Type, Union, get_args, get_origin

from pangu_sigma.config.load import key_types, to_dict
from pangu_sigma.config.renamed import RENAMED
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.strict_json import dumps

FILE = "configs/schema.json"  # where the one of this release stands
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
_LIMITS = {"minimum": "minimum", "above": "exclusiveMinimum", "maximum": "maximum"}


def json_schema() -> Dict[str, Any]:
    """The schema of a configuration file, with a section for each router that there is now."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pangu-sigma configuration",
        **_section(Config, Config(), ""),
    }


def schema_text() -> str:
    """The same as text, as it stands in `FILE`."""
    return dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _section(section: Type[Any], defaults: Any, path: str) -> Dict[str, Any]:
    """A mapping of the keys of a dataclass; no others."""
    hints, keys = key_types(section), {}
    for field in dataclasses.fields(section):
        where = f"{path}.{field.name}".lstrip(".")
        default = getattr(defaults, field.name)
        keys[field.name] = {
            "description": field.metadata["help"],
            **_key(hints[field.name], default, field.metadata, where),
        }
    old = [name for name in RENAMED if name.rpartition(".")[0] == path]
    for name in old:  # an editor then says where it went
        keys[name.rpartition(".")[2]] = {"description": f"is now {RENAMED[name]}", "not": {}}
    return {"type": "object", "additionalProperties": False, "properties": keys}


def _key(hint: Any, default: Any, limits: Mapping[str, Any], path: str) -> Dict[str, Any]:
    arms = get_args(hint) if get_origin(hint) is Union else (hint,)
    kinds = [arm for arm in arms if arm is not type(None)]
    inner = kinds[0]
    if dataclasses.is_dataclass(inner):
        # null is read as a section without keys, or as one that is off
        section = _section(inner, inner() if default is None else default, path)  # type: ignore[arg-type, operator]
        return {**section, "type": ["object", "null"]}
    if get_origin(inner) is dict:
        found: Dict[str, Any] = {"type": "object", "additionalProperties": _scalar(get_args(inner)[1], limits)}
    elif get_origin(inner) is tuple:
        element = get_args(inner)[0]
        of_section = dataclasses.is_dataclass(element)
        found = {
            "type": "array",
            "items": _section(element, element(), path) if of_section else _scalar(element, limits),
        }
    elif len(kinds) > 1:  # a word or a number, each with limits of its own
        number = {name: limits[name] for name in ("minimum", "maximum") if name in limits}
        word = {"choices": limits["choices"]} if "choices" in limits else {}
        found = {"anyOf": [_scalar(str, word), _scalar(int, number)]}
    else:
        found = _scalar(inner, limits)
    if type(None) in arms:
        found = {"anyOf": [*found.get("anyOf", [found]), {"type": "null"}]}
    plain = list(default) if isinstance(default, tuple) else default
    return {**found, "default": to_dict(plain) if dataclasses.is_dataclass(plain) else plain}


def _scalar(kind: Type[Any], limits: Mapping[str, Any]) -> Dict[str, Any]:
    if "choices" in limits:
        return {"enum": list(limits["choices"])}
    return {"type": _TYPES[kind], **{name: limits[key] for key, name in _LIMITS.items() if key in limits}}
