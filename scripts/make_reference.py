#!/usr/bin/env python3
"""Writes docs/configuration.md, docs/metrics.md and configs/schema.json from where keys and metrics are defined.

Usage: python scripts/make_reference.py [--check]. With --check it writes nothing; exit status 1 if a page is not what
it would write.
"""

import argparse
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union, get_args, get_origin

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from pangu_sigma.config.json_schema import FILE, schema_text  # noqa: E402 (the path comes first)
from pangu_sigma.config.load import key_types, to_dict  # noqa: E402
from pangu_sigma.config.schema import Config  # noqa: E402
from pangu_sigma.metrics.definitions import DEFINITIONS  # noqa: E402

COMMAND = "python scripts/make_reference.py"
_NOTE = f"<!-- Made by `{COMMAND}` from {{source}}; changes here are overwritten. -->\n"
_TYPES = {int: "integer", float: "number", str: "text", bool: "true or false"}
_CONFIGURATION = """# Configuration reference

Every key, with its default. A file gives the keys that differ; `--set key.path=value` overrides one on the command
line, and `pangu-sigma config CONFIG` prints all of them with their values, with `--changed` those that are not the
default. A key that does not exist, a value of another type or outside its limits, or values that do not fit together
end the command with one line and status 2. Editors with a YAML language server complete keys, explain them and check
values by [`configs/schema.json`](../configs/schema.json) where a file has the line `# yaml-language-server:
$schema=PATH`, as those in `configs` have; `pangu-sigma config --schema` prints the schema.
What a key does on Ascend is documented or compiled, and was never run there ([ascend.md](ascend.md)).

Numbers are written in decimal digits: `0100`, `0x1F`, `1:30` and `1_000`, which YAML 1.1 reads as 64, 31, 90 and 1000,
are refused with the decimal number offered. `1e-4` is a number. A text that looks like a number stands in quotes, on
the command line inside those of the shell, as in `--set 'data.path="2024"'`; a date is a text.

Sections: {sections}.
"""
_METRICS = """# Metrics reference

`metrics.jsonl` of a run folder holds one JSON object a step. A name is `group/name`, with its unit in brackets: `(s)`
seconds, `(B)` bytes. Fractions are in [0, 1]. Times but `time/step(s)` are means over ranks; bytes are sums over ranks.
No metric was measured on Ascend.

**What cannot occur in a run is left out** of its files and trackers, so that no constant stands there for a
measurement: bytes between nodes of a run on one node, communication of one process, drops of a dispatcher without
slots, a loss that the router does not have, a loss scale without fp16. The configuration and the ranks decide it, not
the values ([`pangu_sigma/metrics/conditions.py`](../pangu_sigma/metrics/conditions.py)): a 0 that is there was
measured. The column *when* says which runs have a metric. With the hccl backend traffic is not counted, and its bytes
and times are left out.

**Which steps count.** Console lines, `watch`, `summary.json`, `report` and `compare` show the same numbers of a run,
all by one rule ([`pangu_sigma/metrics/window.py`](../pangu_sigma/metrics/window.py)): of the second half of the steps
so far (the first half holds compilation and an untrained router) `moe/` is the mean; `time/`, `comm/` and
`throughput/` are means over the middle half of these steps by step time, so that a disturbed step does not count and
the pieces of a step still add up; everything else is the last. Communication is counted without waiting, waiting by
itself (`idle`); `time/all_to_all(s)`, `time/gradient(s)` and `time/tensor(s)` hold both, and say in `.../idle(s)` how
much of it is waiting.

**What is not finite is `null`**, in every file: all of them are strict JSON. A perplexity is `null` where it is beyond
float64 (a loss above 709.78 nats a token). Wherever people read, that is `diverged`, and never comes before a number.
Sums over ranks do not depend on the number of ranks and cannot wrap: they are exact to 2^-20 (of a nat, a token) below
2^139.

With `train.tensorboard: true` (`pip install tensorboardX`) the same numbers go to `tensorboard/` of the run folder,
with `_s` and `_B` in place of the brackets and the meanings below as descriptions, and as histograms the tokens of each
expert and, at the end, the cosines of `cosines.json`
([`pangu_sigma/train/events.py`](../pangu_sigma/train/events.py)); under *Text* stand the configuration and
`environment.json`. `train.tracker` hands numbers and configuration to
Weights & Biases or SwanLab ([`pangu_sigma/train/trackers.py`](../pangu_sigma/train/trackers.py)). `pangu-sigma watch
RUN` shows a run in the terminal, `pangu-sigma report RUN [RUN ...] --follow` as a page that follows it.
"""
_AFTER_METRICS = """
What `cosines.json` holds is written in [`pangu_sigma/train/cosines.py`](../pangu_sigma/train/cosines.py).
"""


def configuration() -> str:
    """docs/configuration.md."""
    sections = list(_sections(Config, ""))
    names = [path for path, _, _ in sections if "." not in path]
    parts = [
        _NOTE.format(source="pangu_sigma/config/schema.py"),
        _CONFIGURATION.format(sections=", ".join(f"[`{name}`](#{name})" for name in names)),
    ]
    for path, help, section in sections:
        level = "##" if "." not in path else "###"
        parts.append(f"\n{level} `{path}`\n\n{_sentence(help)}{_own_words(section)}\n")
        rows = list(_keys(section, path))
        parts += ["\n", _table(("key", "type", "default", "meaning"), rows)] if rows else []
    return "".join(parts)


def metrics() -> str:
    """docs/metrics.md."""
    groups: Dict[str, List[Sequence[str]]] = {}
    for name, definition in DEFINITIONS.items():
        group = "summary.json only" if definition.when == "summary.json" else name.partition("/")[0]
        when = () if definition.when == "summary.json" else (definition.where,)
        groups.setdefault(group, []).append((f"`{name}`", *when, definition.meaning))
    parts = [_NOTE.format(source="pangu_sigma/metrics/definitions.py"), _METRICS]
    for group, rows in groups.items():
        title = group if " " in group else f"`{group}/`"
        parts += [
            f"\n## {title}\n\n",
            _table(("metric", "when", "meaning") if len(rows[0]) == 3 else ("metric", "meaning"), rows),
        ]
    return "".join([*parts, _AFTER_METRICS])


PAGES = {"docs/configuration.md": configuration, "docs/metrics.md": metrics, FILE: schema_text}


def stale() -> List[str]:
    """The pages that are not what their definitions make them."""
    return [
        name
        for name, make in PAGES.items()
        if not (REPOSITORY / name).is_file() or (REPOSITORY / name).read_text(encoding="utf-8") != make()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is stale")
    if parser.parse_args().check:
        old = stale()
        print(f"stale: {', '.join(old)}; run {COMMAND}" if old else "up to date")
        return 1 if old else 0
    for name, make in PAGES.items():
        (REPOSITORY / name).write_text(make(), encoding="utf-8")
        print(name)
    return 0


def _sections(section: Any, path: str, help: str = "") -> Iterator[Tuple[str, str, Any]]:
    """Path, help and dataclass of each section, each before those inside it."""
    if path:
        yield path, help, section
    hints = key_types(section)
    for field in fields(section):
        inner, entry = _bare(hints[field.name]), _entry(hints[field.name])
        if is_dataclass(inner) and not field.metadata.get("of_entry"):
            yield from _sections(inner, f"{path}.{field.name}".lstrip("."), field.metadata["help"])
        elif entry is not None:
            yield from _sections(entry, f"{path}.{field.name}[]", "an entry of the list")


def _keys(section: Any, path: str) -> Iterator[Sequence[str]]:
    hints, defaults = key_types(section), section()
    for field in fields(section):
        hint = hints[field.name]
        if not is_dataclass(hint):
            default, place = getattr(defaults, field.name), f"{path}.{field.name}"
            if field.metadata.get("of_entry"):  # of an entry of moe.routers
                shared = f"moe.router.{field.name}"
                kind = f"a section with keys as [`{shared}`](#{_anchor(shared)})"
            elif is_dataclass(_bare(hint)):
                kind = f"a section, [below](#{_anchor(place)})"
            elif _entry(hint) is not None:
                kind = f"list of sections, [below](#{_anchor(place + '[]')})"
            else:
                kind = _kind(hint, field.metadata)
            kind += ", or null" if type(None) in get_args(hint) else ""
            yield f"`{place}`", kind, f"`{_yaml(default)}`", field.metadata["help"]


def _kind(hint: Any, limits: Any) -> str:
    """The type and what limits it, as `integer >= 1`."""
    bare = _bare(hint)
    if "choices" in limits:
        number = f", or integer >= {limits['minimum']}" if "minimum" in limits else ""
        return ", ".join(f"`{choice}`" for choice in limits["choices"]) + number
    if get_origin(bare) is tuple:
        return f"list of {_TYPES[get_args(bare)[0]]}s"
    if get_origin(bare) is dict:
        return f"mapping of text to {_TYPES[get_args(bare)[1]]}"
    signs = (("minimum", ">="), ("above", ">"), ("maximum", "<="))
    bounds = ", ".join(f"{sign} {limits[name]:g}" for name, sign in signs if name in limits)
    return f"{_TYPES[bare]} {bounds}".strip()


def _bare(hint: Any) -> Any:
    """X of Optional[X]."""
    if get_origin(hint) is Union:
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _entry(hint: Any) -> Any:
    """The section that entries of a list are, None where they are none."""
    element = get_args(hint)[0] if get_origin(hint) is tuple else None
    return element if is_dataclass(element) else None


def _yaml(value: Any) -> str:
    plain = to_dict(value) if is_dataclass(value) else list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).replace("\n...", "").strip()


def _own_words(section: Any) -> str:
    """The docstring that the dataclass was given, if any (dataclasses make up one of their own)."""
    text = (section.__doc__ or "").strip()
    return "" if text.startswith(f"{section.__name__}(") or not text else f" {text.splitlines()[0]}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _anchor(path: str) -> str:
    return path.replace(".", "").replace("[]", "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
