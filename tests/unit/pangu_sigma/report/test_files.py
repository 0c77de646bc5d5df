"""Files of a comparison: whole or not at all when written, and whatever a cut-off program left when read."""

import os

import pytest

from pangu_sigma.report.files import read_lines, read_object
from pangu_sigma.runtime.files import write_atomically


def test_new_content_replaces_the_old_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "summary.json"
    for text in ("alt", "新", "name of another encoding: \udce9"):
        write_atomically(path, text)
        assert path.read_bytes() == text.encode("utf-8", "backslashreplace")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_content(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError("disk full")

    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


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
