"""YAML file + `--set` overrides -> `Config`, strictly: a key is known, typed and within its limits, or it is an error.

Reading has three steps: parse (`pangu_sigma.config.strict_yaml`), override, convert. Errors are `InputError`s that name
the key's full path, the value found and the one expected.
"""

import dataclasses
import difflib
import math
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Type, Union, get_args, get_origin, get_type_hints

import yaml

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import has_lone_surrogate
from locmoe_ops.router_registry import routers
from pangu_sigma.config.renamed import new_name, with_new_names
from pangu_sigma.config.schema import Config, LayerRouterConfig, RouterConfig, layer_router_config, router_config
from pangu_sigma.config.strict_yaml import is_lost, one_line, parse_yaml, read_text, shown
from pangu_sigma.runtime.files import write_atomically
from pangu_sigma.runtime.run_folder import SAVED_CONFIG

# YAML 1.1 reads `1e-4` (no dot) as a string; people mean a number.
_SCIENTIFIC = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+")
_LARGEST = 2**63 - 1  # no setting counts further, and Python does not print an integer of some thousand digits
_EXPECTED = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


Overrides = Union[Sequence[str], Mapping[str, Any]]  # `key.path=value` texts as of `--set`, or values by key.path


def load_config(path: Union[str, "os.PathLike[str]"], overrides: Overrides = ()) -> Config:
    """Reads the YAML file at `path`, applies `overrides` in order, and converts.

    Args:
        path: the file.
        overrides: texts `key.path=value`, as of `--set`; or a mapping of `key.path` to values.

    Raises:
        InputError: the file is missing, not UTF-8, not YAML or not a mapping; a key is unknown, or its value has the
            wrong type or lies outside its limits.
    """
    return config_with(read_sections(path), overrides)


def read_sections(path: Union[str, "os.PathLike[str]"]) -> Dict[str, Any]:
    """The YAML file at `path` as nested mappings; one that this program saved has its keys' present names.

    Raises InputError: as `load_config`, but for keys and values.
    """
    text = read_text(path)
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise InputError(
            f"{path}: found {shown(raw)} at top level, expected a mapping of sections ({', '.join(_names(Config))})"
        )
    return with_new_names(raw) if text.startswith(SAVED_CONFIG) else raw


def config_with(raw: Dict[str, Any], *layers: Overrides) -> Config:
    """Converts a nested mapping, whose values are those of `layers` of overrides where these have any.

    Args:
        raw: as `read_sections` gives it; is changed.
        layers: each as `load_config` takes them, applied in order.

    Raises InputError: as `load_config`.
    """
    for overrides in layers:
        if isinstance(overrides, Mapping):
            for path, value in overrides.items():
                value = list(value) if isinstance(value, tuple) else value
                _set(raw, path.split("."), value, f"override {one_line(path)[:200]}")
            continue
        for override in overrides:
            keys, equals, text = override.partition("=")
            names, where = keys.strip().split("."), f"--set {one_line(override)[:200]}"
            if not equals or not all(names):
                raise InputError(f"--set {shown(override)}: expected key.path=value, as in model.hidden_size=256")
            _set(raw, names, parse_yaml(text, where), where)
    return config_from_dict(raw)


def _set(raw: Dict[str, Any], names: Sequence[str], value: Any, where: str) -> None:
    section = raw
    for depth, name in enumerate(names[:-1], start=1):
        # null stands for an optional section that is off; setting one of its keys turns it on.
        section[name] = child = {} if section.get(name) is None else section[name]
        if not isinstance(child, dict):
            key = one_line(".".join(names[:depth]))[:200]
            raise InputError(f"{where}: {key} holds {shown(child)}, which has no keys")
        section = child
    section[names[-1]] = value


def config_from_dict(raw: Mapping[str, Any]) -> Config:
    """Converts a nested mapping (as parsed from YAML) into a `Config`; keys left out take their defaults."""
    config: Config = section_from_dict(Config, _with_layer_sections(raw), "")
    return config


def _with_layer_sections(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration in which each entry of `moe.routers` names its router and has its section, with what `moe.router`
    has for keys that the entry leaves out. What is no configuration is left as it is, for the conversion to say so.
    """
    moe = raw.get("moe") if isinstance(raw, Mapping) else None
    if not isinstance(moe, Mapping) or not isinstance(moe.get("routers"), list):
        return raw
    router = moe.get("router")
    shared: Mapping[str, Any] = router if isinstance(router, Mapping) else {}

    def completed(entry: Any) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        name = entry.get("type") or shared.get("type") or RouterConfig.type
        if not isinstance(name, str) or name not in routers():
            return entry
        below, own = shared.get(name), entry.get(name)
        if own is not None and not isinstance(own, Mapping):
            return entry
        return {**entry, "type": name, name: {**(below if isinstance(below, Mapping) else {}), **(own or {})}}

    return {**raw, "moe": {**moe, "routers": [completed(entry) for entry in moe["routers"]]}}


def to_dict(config: Any) -> Dict[str, Any]:
    """The configuration as nested dicts and lists that YAML can hold; `config_from_dict` is its inverse.

    The section of a router that a user brought along is left out unless that router is used: who reads the result may
    not have it. So is what an entry of `moe.routers` has of other routers than its own, which is nothing.
    """
    found: Dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("of_entry") and value is None:
            continue
        if field.metadata.get("external") and not field.metadata["of_entry"] and field.name != config.type:
            continue
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = [to_dict(one) if dataclasses.is_dataclass(one) else one for one in value]
        elif isinstance(value, dict):
            value = dict(value)
        found[field.name] = value
    return found


def save_config(config: Config, path: Union[str, "os.PathLike[str]"]) -> None:
    """Writes every key as YAML under a line that says where the file is from; it appears whole or not at all. Raises
    OSError.
    """
    write_atomically(
        Path(path), f"{SAVED_CONFIG}\n" + yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    )


# ---- conversion


def section_from_dict(section: Type[Any], raw: Any, path: str) -> Any:
    """Converts a mapping, strictly, into a dataclass whose fields are declared by `locmoe_ops.keys.key`.

    Args:
        section: the dataclass, `Config` or another one.
        raw: the mapping; keys left out take their defaults.
        path: of the section, which stands before the keys' names in messages; "" for the whole.

    Raises:
        InputError: as `load_config`.
    """
    if not isinstance(raw, Mapping):
        raise InputError(f"{path}: found {shown(raw)}, expected a section with keys {', '.join(_names(section))}")
    fields = {field.name: field for field in dataclasses.fields(section)}
    hints = key_types(section)
    values = {}
    for name, value in raw.items():
        if name not in fields:
            raise _unknown_key(section, name, path)
        where = f"{path}.{name}" if path else name
        values[name] = _convert(hints[name], value, where, fields[name].metadata)
    return section(**values)


def key_types(section: Type[Any]) -> Dict[str, Any]:
    """The types of a section's keys by name; those of `moe.router` and of the entries of `moe.routers` have a section
    for each router that there is now.
    """
    found = get_type_hints(section)
    for name, hint in found.items():
        if hint is RouterConfig:
            found[name] = router_config()
        elif hint == Tuple[LayerRouterConfig, ...]:
            found[name] = Tuple[layer_router_config(), ...]
    return found


def _convert(hint: Any, value: Any, path: str, limits: Mapping[str, Any]) -> Any:
    arms = get_args(hint) if get_origin(hint) is Union else (hint,)
    optional = type(None) in arms
    if optional and value is None:
        return None
    hint, *others = (arm for arm in arms if arm is not type(None))
    if others:  # a word or a number, each with limits of its own
        is_number = isinstance(value, int) and not isinstance(value, bool)
        hint, own = (int, ("minimum", "maximum")) if is_number else (str, ("choices", "hint"))
        limits = {name: limit for name, limit in limits.items() if name in own}
    if dataclasses.is_dataclass(hint):
        return section_from_dict(hint, {} if value is None else value, path)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            example = "[{layers: [0, 1], type: hash}]" if path == "moe.routers" else "[0, 1]"
            raise InputError(f"{path}: found {shown(value)}, expected a list, as in {example}")
        element = get_args(hint)[0]
        return tuple(_convert(element, item, f"{path}[{index}]", limits) for index, item in enumerate(value))
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            what = "paths" if get_args(hint)[1] is str else "numbers"
            raise InputError(f"{path}: found {shown(value)}, expected a mapping of names to {what}")
        for name, item in value.items():
            # An unquoted `no:` is a boolean in YAML.
            if not isinstance(name, str):
                raise InputError(f"{path}: found the key {shown(name)}, expected a string (put it in quotes)")
            if get_args(hint)[1] is not str:
                continue
            if not isinstance(item, str):
                raise InputError(f"{path}.{name}: found {shown(item)}, expected a string{_how_to_write(str, item)}")
            if not (_is_text(name) and _is_text(item)):
                raise InputError(
                    f"{path}: found {shown(name)}: {shown(item)}, expected characters that UTF-8 can hold, and no NUL"
                )
        if get_args(hint)[1] is not str:
            return {name: _convert(get_args(hint)[1], item, f"{path}.{name}", limits) for name, item in value.items()}
        return dict(value)
    converted = _convert_scalar(hint, value, path, limits, optional)
    if not _within(converted, limits):
        raise _wrong_value(hint, value, path, limits, optional)
    return converted


def _convert_scalar(kind: type, value: Any, path: str, limits: Mapping[str, Any], optional: bool) -> Any:
    if kind is float:
        if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
            if is_lost(value):
                raise InputError(f"{path}: found {shown(value)}, expected a number that double precision can hold")
            value = float(value)
        # An integer too large for a float cannot be a sensible setting either.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300:
            return float(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        if isinstance(value, str) and not _is_text(value):
            raise InputError(f"{path}: found {shown(value)}, expected characters that UTF-8 can hold, and no NUL")
        if not isinstance(value, int) or abs(value) <= _LARGEST:
            return value
    raise _wrong_value(kind, value, path, limits, optional)


def _is_text(value: str) -> bool:
    """False for what no file name and no UTF-8 file can hold: NUL, and the lone surrogates that YAML's escapes can
    spell.
    """
    return "\0" not in value and not has_lone_surrogate(value)


def _within(value: Any, limits: Mapping[str, Any]) -> bool:
    return (
        ("choices" not in limits or value in limits["choices"])
        and ("minimum" not in limits or value >= limits["minimum"])
        and ("above" not in limits or value > limits["above"])
        and ("maximum" not in limits or value <= limits["maximum"])
        and not (isinstance(value, float) and not math.isfinite(value))
    )


# ---- messages


def _wrong_value(kind: type, value: Any, path: str, limits: Mapping[str, Any], optional: bool) -> InputError:
    if "choices" in limits:
        expected = "one of " + ", ".join(limits["choices"])
        near = difflib.get_close_matches(value, limits["choices"], n=1) if isinstance(value, str) else []
        expected += f" (did you mean {near[0]}?)" if near else ""
        expected += f"; {limits['hint']}" if "hint" in limits else ""
    else:
        bounds = [("minimum", ">="), ("above", ">"), ("maximum", "<=")]
        parts = [f"{sign} {limits[name]}" for name, sign in bounds if name in limits]
        too_large = " of 64 bits" if kind is int and isinstance(value, int) and abs(value) > _LARGEST else ""
        expected = " ".join([_EXPECTED[kind] + too_large, " and ".join(parts)]).strip()
        expected += _how_to_write(kind, value)
    return InputError(f"{path}: found {shown(value)}, expected {expected}{' or null' if optional else ''}")


def _how_to_write(kind: type, value: Any) -> str:
    """What else to say where a value looks right but is of another type: 08 and 0o17 are texts in YAML 1.1, 3 is
    none.
    """
    if kind is str and isinstance(value, (bool, int, float)):
        return " (in quotes)"
    if kind not in (int, float) or not isinstance(value, str) or len(value) > 40:
        return ""
    for read in (int, lambda text: int(text, 0), float):
        try:
            number = read(value)
            if kind is float or number == int(number):
                return f", as in {shown(number if kind is float else int(number))}" if math.isfinite(number) else ""
        except (ValueError, OverflowError):
            continue
    return ""


def _unknown_key(section: Type[Any], name: Any, path: str) -> InputError:
    name = name if isinstance(name, str) and len(name) <= 80 else shown(name)
    where = f"{path}.{name}" if path else name
    if new_name(where) is not None and _is_configuration(section, path):
        return InputError(f"{where}: this key is now {new_name(where)}; expected that name")
    # The reader may know the key but not its place: full paths of the keys of that very name in any section.
    is_key = _is_configuration(section, path)
    elsewhere = [full for full in _all_paths(Config, "") if full.rpartition(".")[2] == name] if is_key else []
    near = [] if elsewhere else difflib.get_close_matches(name, _names(section), n=1)
    suggestions = [f"{path}.{one}" if path else one for one in near] or elsewhere
    if suggestions:
        return InputError(f"{one_line(where)}: unknown key, did you mean {' or '.join(suggestions)}?")
    expected = f"one of {', '.join(_names(section))}" if _names(section) else "none"
    return InputError(f"{one_line(where)}: unknown key, expected {expected}")


def _is_configuration(section: Type[Any], path: str) -> bool:
    """Whether a section is one of a configuration, and not of another file, such as that of a machine."""
    return section.__module__.startswith(Config.__module__) or path.startswith(("moe.router.", "moe.routers["))


def _all_paths(section: Type[Any], prefix: str) -> List[str]:
    paths = []
    for name, hint in key_types(section).items():
        plain = () if get_origin(hint) is tuple else get_args(hint) or (hint,)  # entries of a list have no path
        arms = [arm for arm in plain if dataclasses.is_dataclass(arm)]
        inner = [path for arm in arms for path in _all_paths(arm, f"{prefix}{name}.")]  # type: ignore[arg-type]
        paths += [prefix + name, *inner]
    return paths


def _names(section: Type[Any]) -> List[str]:
    return [field.name for field in dataclasses.fields(section)]
