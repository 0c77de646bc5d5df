"""What is written is JSON, whatever the numbers, and nothing is written in another way; whatever a cut-off program left
can be read.
"""

import ast
import json
from pathlib import Path

import pytest

import locmoe_ops
import pangu_sigma
from pangu_sigma.runtime.strict_json import dumps, number, read_lines, read_object

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (NAN, "null"),
        (INF, "null"),
        (-INF, "null"),
        (1.5, "1.5"),
        ([1, NAN, "NaN"], '[1, null, "NaN"]'),
        ((INF, 2), "[null, 2]"),
        ({"a": {"b": [[-INF]]}, "c": True}, '{"a": {"b": [[null]]}, "c": true}'),
        (1e308, "1e+308"),
        (None, "null"),
        (10**400, str(10**400)),
    ],
)
def test_what_is_not_finite_is_null(content, expected):
    assert dumps(content) == expected
    assert dumps([content], indent=None) == f"[{expected}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NaN", None),
        ("Infinity", None),
        ("-Infinity", None),
        ("null", None),
        ("true", None),
        ('"1"', None),
        ("[1]", None),
        ("1" * 400, None),
        ("0", 0.0),
        ("-2.5", -2.5),
    ],
)
def test_what_older_files_hold_reads_as_null_does(text, expected):
    assert number(json.loads(text)) == expected


# Elsewhere `json` only writes what is hashed, shown in a message, or has no fractions.
OTHERS = {
    "strict_json.py",
    "evaluation/prompts.py",
    "data/prepare.py",
    "compare/comparison.py",
    "compare/runner.py",
    "report/summary.py",
    "checkpoint/parts.py",
    "checkpoint/shards.py",
    "checkpoint/format.py",
    "tcp/wire.py",
    "locmoe_ops/json_file.py",
    "locmoe_ops/routing_trace.py",
}


def test_one_function_writes_json():
    found = set()
    for package in (pangu_sigma, locmoe_ops):
        for path in Path(package.__file__).parent.rglob("*.py"):
            calls = (
                node.func
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Call)
            )
            if any(
                isinstance(call, ast.Attribute)
                and call.attr in ("dump", "dumps")
                and getattr(call.value, "id", "") == "json"
                for call in calls
            ):
                found.add(str(path))
    assert {path for path in found if not any(path.endswith(other) for other in OTHERS)} == set()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b'{"a": 1}', {"a": 1}), (b'{"a": 1', {}), (b"", {}), (b"[1]", {}), (b"null", {}), (b'{"a": "\xff"}', {})],
)
def test_an_object_is_read_whole_or_not_at_all(tmp_path, content, expected):
    (tmp_path / "note.json").write_bytes(content)
    assert read_object(tmp_path / "note.json") == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        (b'{"a": 1}\n{"a": 2', [{"a": 1}]),
        (b'{"a": 1}\n7\n{"a": 2}\n', [{"a": 1}]),
        (b'{"a": 1}\n[]\n{"a": 2}\n', [{"a": 1}]),
        (b'{"a": 1}\n{"a": "\xff', [{"a": 1}]),
        (b'{"a": "x\xe2\x80\xa8y"}\n', [{"a": "x\u2028y"}]),  # a line separator of Unicode ends no line of JSON
        (b"", []),
    ],
)
def test_lines_are_read_up_to_the_first_broken_one(tmp_path, content, expected):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert read_lines(tmp_path / "metrics.jsonl") == expected


def test_what_is_not_there_is_empty(tmp_path):
    assert (read_object(tmp_path / "absent.json"), read_lines(tmp_path / "absent.jsonl")) == ({}, [])
    assert (read_object(tmp_path), read_lines(tmp_path)) == ({}, [])
