"""What a line is, what a record is, and that nothing else gets through without a file and a line number."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.data.jsonl import is_jsonl, read_lines, read_records


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\nb", ["1:a", "2:b"]),
        ("a\r\nb\r\n", ["1:a", "2:b"]),
        ("\ufeffa\nb\n", ["1:a", "2:b"]),
        ("\n  \na\n\r\n\t\nb", ["3:a", "6:b"]),
        ("a\u2028b\u0085c\u2029d\x0be\x0cf\n", ["1:a\u2028b\u0085c\u2029d\x0be\x0cf"]),
        ("a\rb\n", ["1:a\rb"]),
        ("a  \n\ta\n", ["1:a  ", "2:\ta"]),
        ("first\n\ufeffsecond file put behind it", ["1:first", "2:second file put behind it"]),
        ("", []),
    ],
)
def test_lines(tmp_path, content, expected):
    (tmp_path / "x.txt").write_bytes(content.encode())
    assert [f"{where.rpartition(':')[2]}:{line}" for line, where in read_lines(tmp_path / "x.txt", "text")] == expected


def test_records_of_every_system(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(
        '\ufeff{"a": "x\u2028y\u0085z"}\r\n\r\n{"a": "\\ud83d\\ude00", "b": [NaN, 1e400]}'.encode()
    )
    records = list(read_records(tmp_path / "x.jsonl", "objects"))
    assert [record.text("a") for record in records] == ["x\u2028y\u0085z", "\U0001f600"]
    assert [record.where for record in records] == [f"{tmp_path}/x.jsonl:1", f"{tmp_path}/x.jsonl:3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": ' + b"7" * 5000 + b"}", "broken JSON (an integer of 5000 digits), expected objects"),
        (b'{"a": -' + b"7" * 4300 + b"}", "broken JSON (an integer of 4301 digits)"),
        (b'{"b": ' + b"[" * 50000 + b"]" * 50000 + b"}", "broken JSON (nested too deeply)"),
        (b'{"b": ' + b'{"b":' * 50000, "broken JSON (nested too deeply)"),
        (b'{"a": "x"', "broken JSON (expecting ',' delimiter, column 10); expected objects"),
        (b'{"a": "x"} {"a": "y"}', "broken JSON (extra data, column 12)"),
        (b"{'a': 1}", "broken JSON"),
        (b'{"a": "x", "a": "y"}', "broken JSON ('a' is given twice in one object)"),
        (b'["a"]', "found a list; expected objects"),
        (b"null", "found null; expected objects"),
        (b'"a"', "found a string"),
        (b"7", "found a number"),
        (b"true", "found a boolean"),
        (b'{"a": "caf\xe9"}', "not UTF-8 text (byte 10), expected objects"),
        (b"\xff\xfe{\x00", "not UTF-8 text (byte 0)"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "fine"}\n\n' + line + b"\n")
    with pytest.raises(InputError) as caught:
        list(read_records(tmp_path / "x.jsonl", "objects"))
    assert str(caught.value).startswith(f"{tmp_path}/x.jsonl:3: {message}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"a": "\\ud83d"}', "x.jsonl:1: field `a` holds half of a surrogate pair"),
        ('{"a": "\\ude00\\ud83d"}', "x.jsonl:1: field `a` holds half of a surrogate pair"),
        ('{"a": null}', "x.jsonl:1: field `a` is null; expected a string"),
        ('{"a": 5}', "x.jsonl:1: field `a` is a number; expected a string"),
        ('{"a": true}', "x.jsonl:1: field `a` is a boolean; expected a string"),
        ('{"a": ["x"]}', "x.jsonl:1: field `a` is a list; expected a string"),
        ('{"b": 1, "c": 2}', "x.jsonl:1: field `a` is missing; expected a string (fields found: b, c)"),
        ("{}", "x.jsonl:1: field `a` is missing; expected a string (fields found: none)"),
    ],
)
def test_a_field_that_is_no_text_is_named(tmp_path, record, message):
    (tmp_path / "x.jsonl").write_text(record)
    with pytest.raises(InputError) as caught:
        next(read_records(tmp_path / "x.jsonl", "objects")).text("a")
    assert message in str(caught.value)


def test_a_field_may_be_left_out_or_null(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": null}\n{"b": 1}\n{"a": "x"}\n{"a": ""}')
    assert [record.optional_text("a") for record in read_records(tmp_path / "x.jsonl", "objects")] == [
        None,
        None,
        "x",
        "",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", True),
        ("a.JSONL", True),
        ("a.NdJson", True),
        ("a.json", False),
        ("jsonl", False),
        ("a.jsonl.gz", False),
    ],
)
def test_the_name_says_what_a_file_holds(tmp_path, name, expected):
    assert is_jsonl(tmp_path / name) == expected


@pytest.mark.parametrize("name", ["absent", "."])
def test_what_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(InputError, match="cannot be read"):
        list(read_lines(tmp_path / name, "text"))
