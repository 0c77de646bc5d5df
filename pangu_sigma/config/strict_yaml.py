"""YAML as people write it: safe, no duplicate keys, decimal numbers; and values as one short line for messages."""

import math
import os
import re
import reprlib
from typing import Any, Dict, List, Union

import yaml

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import MOST_DIGITS
from locmoe_ops.json_file import read_text as read_text_file

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MERGE = "tag:yaml.org,2002:merge"
_DIGITS = re.compile(r"[+-]?[0-9]+")


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
        """Looks at the keys as they are written; what a merge key (`<<`) adds, a key of the mapping itself
        overrides.
        """
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
        if is_lost(text):
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


def is_lost(text: str) -> bool:
    """Whether a float cannot hold the decimal number: it becomes infinite, or 0 though it is not."""
    value = float(text)
    return math.isinf(value) or value == 0.0 and re.search("[1-9]", re.split("[eE]", text)[0]) is not None


def read_text(path: Union[str, "os.PathLike[str]"]) -> str:
    """The UTF-8 text of the file at `path`. Raises InputError: it cannot be read, is not UTF-8, or holds nothing."""
    text = read_text_file(path, "a YAML configuration file")
    if not text.strip():
        raise InputError(f"{path}: the file is empty, expected a YAML configuration")
    return text


def parse_yaml(text: str, where: str) -> Any:
    """What `text` means as YAML. Raises InputError, which begins with `where`: it is not safe YAML, a key is given
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


def shown(value: Any, limit: int = 80) -> str:
    """The value as one short line of at most `limit` characters; null and booleans as YAML spells them."""
    if value is None or isinstance(value, bool):
        return spelled(value)
    text = one_line(_Shortened().repr(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def spelled(value: Any) -> str:
    """The value as text, without quotes; null and booleans as YAML spells them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


class _Shortened(reprlib.Repr):
    """`repr` as far as anybody reads: YAML's aliases can make a value that is large beyond all bounds when written
    out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxset = 4, 20, 20, 20, 20
        self.maxstring = self.maxother = 400

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() <= 300 else f"an integer of {value.bit_length()} bits"


def one_line(text: str) -> str:
    """The text with single blanks for all white space."""
    return " ".join(text.split())
