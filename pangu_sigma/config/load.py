"""YAML file + `--set` overrides -> `Config`, strictly: a key is known, typed and within its limits, or it is an error.

Reading has three steps: parse (safe YAML, no duplicate keys, decimal numbers), override, convert. Errors are
`InputError`s that name the key's full path, the value found and the one expected.
"""

import dataclasses
import difflib
import math
import os
import re
import reprlib
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Type, Union, get_args, get_origin, get_type_hints

import yaml

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import MOST_DIGITS, has_lone_surrogate
from locmoe_ops.json_file import read_text as read_text_file
from pangu_sigma.config.schema import Config, RouterConfig, router_config
from pangu_sigma.runtime.files import write_atomically
from pangu_sigma.runtime.run_folder import SAVED_CONFIG

# YAML 1.1 reads `1e-4` (no dot) as a string; people mean a number.
_SCIENTIFIC = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+")
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MERGE = "tag:yaml.org,2002:merge"
_DIGITS = re.compile(r"[+-]?[0-9]+")
_LARGEST = 2**63 - 1  # no setting counts further, and Python does not print an integer of some thousand digits
_EXPECTED = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def load_config(path: Union[str, "os.PathLike[str]"], overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key.path=value` overrides in order, and converts.

    Raises:
        InputError: the file is missing, not UTF-8, not YAML or not a mapping; a key is unknown, or its value has the
            wrong type or lies outside its limits.
    """
    raw = parse_yaml(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise InputError(
            f"{path}: found {shown(raw)} at top level, expected a mapping of sections ({', '.join(_names(Config))})"
        )
    for override in overrides:
        _apply_override(raw, override)
    return config_from_dict(raw)


def config_from_dict(raw: Mapping[str, Any]) -> Config:
    """Converts a nested mapping (as parsed from YAML) into a `Config`; keys left out take their defaults."""
    config: Config = _convert_section(Config, raw, "")
    return config


def section_from_dict(section: Type[Any], raw: Any, path: str) -> Any:
    """Converts a mapping, as strictly, into a dataclass other than `Config` that is declared in the same way.

    Raises InputError: as `load_config`; `path` stands before the keys' names.
    """
    return _convert_section(section, raw, path)


def to_dict(config: Any) -> Dict[str, Any]:
    """The configuration as nested dicts and lists that YAML can hold; `config_from_dict` is its inverse.

    The section of a router that a user brought along is left out unless that router is used: who reads the result may
    not have it.
    """
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if not field.metadata.get("external") or field.name == config.type
    }


def save_config(config: Config, path: Union[str, "os.PathLike[str]"]) -> None:
    """Writes every key as YAML under a line that says where the file is from; it appears whole or not at all. Raises
    OSError.
    """
    write_atomically(
        Path(path), f"{SAVED_CONFIG}\n" + yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value


# ---- parsing


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without what plain YAML 1.1 does silently: it keeps the last of two equal keys of a mapping, and reads
    numbers such as 0100 (64), 1:30 (90) and 1_000 in ways that nobody expects. Here both are refused, and a date is a
    text.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looks at the keys as they are written; what a merge key (`<<`) adds, a key of the mapping itself overrides."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key_node in (pair[0] for pair in node.value if isinstance(pair[0], yaml.ScalarNode)):
            if key_node.value in seen:
                several = "; expected one with a list, as in <<: [*a, *b]" if key_node.value == "<<" else ""
                problem = f"key '{key_node.value}' is given twice{several}"
                raise yaml.composer.ComposerError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Takes in what merge keys name. A key of the mapping itself goes before merged ones, and a mapping of a list
        before the later ones (https://yaml.org/type/merge.html; releases of PyYAML differ in the latter).
        """
        merges = [value for key, value in node.value if key.tag == _MERGE]
        node.value = [pair for pair in node.value if pair[0].tag != _MERGE]  # first: a mapping may name itself
        own = {str(key.value) for key, _ in node.value}
        merged: Dict[str, Any] = {}
        for merge in merges:
            for source in merge.value if isinstance(merge, yaml.SequenceNode) else [merge]:
                if not isinstance(source, yaml.MappingNode):
                    problem = "expected a mapping or a list of mappings after <<"
                    raise yaml.constructor.ConstructorError(None, None, problem, merge.start_mark)
                self.flatten_mapping(source)
                for key, value in source.value:
                    merged.setdefault(str(key.value), (key, value))
        node.value = [pair for name, pair in merged.items() if name not in own] + node.value

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Decimal digits, without zeros before them."""
        text = str(self.construct_scalar(node))
        if _INTEGER.fullmatch(text) and len(text) <= MOST_DIGITS:
            return int(text)
        if _INTEGER.fullmatch(text):
            problem = f"found an integer of {len(text)} digits, expected one of 64 bits"
            raise _RefusedNumber(None, None, problem, node.start_mark)
        decimal = text.replace("_", "")
        readings = [int(decimal)] if _DIGITS.fullmatch(decimal) and len(decimal) <= MOST_DIGITS else []
        raise _refused(node, text, self.construct_yaml_int(node), readings)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """Decimal digits with a point or an exponent. Infinity and NaN are numbers, of which no key takes any."""
        text = str(self.construct_scalar(node))
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            return float(self.construct_yaml_float(node))
        if not _NUMBER.fullmatch(text):
            raise _refused(node, text, self.construct_yaml_float(node), [])
        if _is_lost(text):
            problem = f"found {shown(text)}, expected a number that double precision can hold"
            raise _RefusedNumber(None, None, problem, node.start_mark)
        return float(text)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_integer)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_number)


class _RefusedNumber(yaml.MarkedYAMLError):
    """A number that YAML 1.1 knows and that is not taken here."""


def _refused(node: yaml.ScalarNode, text: str, value: Any, readings: List[int]) -> _RefusedNumber:
    """The number as written, as YAML 1.1 reads it, and the decimal ways of writing what may be meant."""
    offered = " or ".join(shown(reading) for reading in dict.fromkeys([*readings, value]))
    problem = (
        f"found {shown(text)}, which YAML 1.1 reads as {shown(value)}; expected decimal digits, as in {offered}, "
        "or quotes around what is a text"
    )
    return _RefusedNumber(None, None, problem, node.start_mark)


def _is_lost(text: str) -> bool:
    """Whether a float cannot hold the decimal number: it becomes infinite, or 0 though it is not."""
    value = float(text)
    return math.isinf(value) or value == 0.0 and re.search("[1-9]", re.split("[eE]", text)[0]) is not None


def read_text(path: Union[str, "os.PathLike[str]"]) -> str:
    """A file's UTF-8 text. Raises InputError: it cannot be read, is not UTF-8, or holds nothing."""
    text = read_text_file(path, "a YAML configuration file")
    if not text.strip():
        raise InputError(f"{path}: the file is empty, expected a YAML configuration")
    return text


def parse_yaml(text: str, where: str) -> Any:
    """What the text means as YAML. Raises InputError, which begins with `where`: it is not safe YAML, a key is given
    twice, or a number is not written in decimal digits.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (derived from SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" line {mark.line + 1}" if mark and "\n" in text.strip("\n") else ""
        if isinstance(error, _RefusedNumber):
            raise InputError(f"{where}:{at}{':' if at else ''} {error.problem}") from error
        raise InputError(f"{where}:{at} not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # PyYAML lets the last ones out where a tag does not fit its value, as in `!!bool maybe` or `!!timestamp x`.
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: not valid YAML: {reason if len(reason) <= 200 else reason[:200] + ' ...'}"
        ) from error


def _apply_override(raw: Dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise InputError(f"--set {shown(override)}: expected key.path=value, as in model.hidden_size=256")
    section, where = raw, f"--set {_one_line(override)[:200]}"
    for depth, name in enumerate(names[:-1], start=1):
        # null stands for an optional section that is off; setting one of its keys turns it on.
        child = section.get(name)
        section[name] = child = {} if child is None else child
        if not isinstance(child, dict):
            raise InputError(
                f"{where}: {_one_line('.'.join(names[:depth]))[:200]} holds {shown(child)}, which has no keys"
            )
        section = child
    section[names[-1]] = parse_yaml(text, where)


# ---- conversion


def _convert_section(section: Type[Any], raw: Any, path: str) -> Any:
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
    """The types of a section's keys by name; that of `moe.router` has a section for each router that there is now."""
    return {name: router_config() if hint is RouterConfig else hint for name, hint in get_type_hints(section).items()}


def _convert(hint: Any, value: Any, path: str, limits: Mapping[str, Any]) -> Any:
    optional = get_origin(hint) is Union
    if optional:
        hint = next(arm for arm in get_args(hint) if arm is not type(None))
        if value is None:
            return None
    if dataclasses.is_dataclass(hint):
        return _convert_section(hint, {} if value is None else value, path)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        return _convert_sequence(get_args(hint)[0], value, path, limits)
    if get_origin(hint) is dict:
        return _convert_mapping(value, path)
    converted = _convert_scalar(hint, value, path, limits, optional)
    if not _within(converted, limits):
        raise _wrong_value(hint, value, path, limits, optional)
    return converted


def _convert_sequence(element: Any, value: Any, path: str, limits: Mapping[str, Any]) -> Tuple[Any, ...]:
    if not isinstance(value, list):
        raise InputError(f"{path}: found {shown(value)}, expected a list, as in [0, 1]")
    return tuple(_convert(element, item, f"{path}[{index}]", limits) for index, item in enumerate(value))


def _convert_mapping(value: Any, path: str) -> Dict[str, str]:
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: found {shown(value)}, expected a mapping of names to paths")
    for name, item in value.items():
        # An unquoted `no:` is a boolean in YAML.
        if not isinstance(name, str):
            raise InputError(f"{path}: found the key {shown(name)}, expected a string (put it in quotes)")
        if not isinstance(item, str):
            raise InputError(f"{path}.{name}: found {shown(item)}, expected a string{_how_to_write(str, item)}")
        if not (_is_text(name) and _is_text(item)):
            raise InputError(
                f"{path}: found {shown(name)}: {shown(item)}, expected characters that UTF-8 can hold, and no NUL"
            )
    return dict(value)


def _convert_scalar(kind: type, value: Any, path: str, limits: Mapping[str, Any], optional: bool) -> Any:
    if kind is float:
        if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
            if _is_lost(value):
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
    """What else to say where a value looks right but is of another type: 08 and 0o17 are texts in YAML 1.1, 3 is none."""
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
    near = difflib.get_close_matches(name, _names(section), n=1)
    is_key = section.__module__ == Config.__module__ or path.startswith("moe.router.")
    elsewhere = _paths_ending_in(name) if is_key else []
    suggestions = [f"{path}.{near[0]}" if path else near[0]] if near else elsewhere
    if suggestions:
        return InputError(f"{_one_line(where)}: unknown key, did you mean {' or '.join(suggestions)}?")
    expected = f"one of {', '.join(_names(section))}" if _names(section) else "none"
    return InputError(f"{_one_line(where)}: unknown key, expected {expected}")


def _paths_ending_in(name: str) -> List[str]:
    """Full paths of the keys of that very name in any section: the reader knew the key but not its place."""
    return [path for path in _all_paths(Config, "") if path.rpartition(".")[2] == name]


def _all_paths(section: Type[Any], prefix: str) -> List[str]:
    paths = []
    for name, hint in key_types(section).items():
        arms = [arm for arm in (get_args(hint) or (hint,)) if dataclasses.is_dataclass(arm)]
        paths += [prefix + name] + [path for arm in arms for path in _all_paths(arm, f"{prefix}{name}.")]  # type: ignore
    return paths


def _names(section: Type[Any]) -> List[str]:
    return [field.name for field in dataclasses.fields(section)]


def shown(value: Any, limit: int = 80) -> str:
    """The value as one short line; null and booleans as YAML spells them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = _one_line(_Shortened().repr(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."


class _Shortened(reprlib.Repr):
    """`repr` as far as anybody reads: YAML's aliases can make a value that is large beyond all bounds when written out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxset = 4, 20, 20, 20, 20
        self.maxstring = self.maxother = 400

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() <= 300 else f"an integer of {value.bit_length()} bits"


def _one_line(text: str) -> str:
    return " ".join(text.split())
