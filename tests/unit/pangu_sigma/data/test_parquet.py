"""Parquet sources, written by pyarrow."""

import sys
from pathlib import Path
from typing import Any, Dict

import pyarrow
import pyarrow.parquet
import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.data.corpus import RecordKeys, read_documents
from pangu_sigma.data.sources import SourceCount


def write(path: Path, columns: Dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def texts(path: Path, domain: str = "zh", **options: Any) -> list:
    return [document.text for document in read_documents(domain, str(path), **options)]


@pytest.mark.parametrize(
    "kind",
    [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())],
    ids=str,
)
def test_rows_are_documents_of_their_domain_whatever_kind_of_string(tmp_path: Path, kind: Any) -> None:
    domains = pyarrow.array(["zh", "en", None, "zh"], pyarrow.string()).cast(kind)
    words = pyarrow.array(["天下", "b", "两", "大势\u2028\r\n"], pyarrow.string()).cast(kind)
    path = write(tmp_path / "a.parquet", {"text": words, "domain": domains, "n": [1, 2, 3, 4]})
    assert texts(path) == ["天下", "两", "大势\u2028\r\n"]
    assert texts(path, "en") == ["b", "两"]


def test_columns_of_other_names_in_a_folder_with_jsonl(tmp_path: Path) -> None:
    write(tmp_path / "train-00000.PARQUET", {"content": ["a", "b"], "来源": ["百科", "en"]})
    (tmp_path / "more.jsonl").write_text('{"content": "c", "来源": "百科", "text": 5}\n', encoding="utf-8")
    (tmp_path / "z.txt").write_text("d")
    count = SourceCount()
    assert texts(tmp_path, "百科", keys=RecordKeys("content", "来源"), count=count) == ["c", "a", "d"]
    assert (count.files, count.records, count.labelled_records) == (3, 3, 3)


def test_rows_without_text_are_passed_over_and_row_groups_are_walked_in_order(tmp_path: Path) -> None:
    found = [None if number % 5 == 0 else f"document {number}" for number in range(1000)]
    path, count = write(tmp_path / "a.parquet", {"text": found}, row_group_size=300), SourceCount()
    assert texts(path, count=count) == [text for text in found if text]
    assert count.records_passed_over.counts == {"empty": 200}
    assert count.records_passed_over.names["empty"] == [f"{path} row {number}" for number in (1, 6, 11)]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"body": ["a"]}, r"column `text` is missing; .*\(columns found: body\); data\.prepare\.text_key"),
        ({"text": [5]}, "column `text` holds int64; expected strings"),
        ({"text": [["a"]]}, r"column `text` holds list<.*; expected strings"),
        ({"text": [b"a"]}, "column `text` holds binary; expected strings"),
        ({"text": ["a"], "domain": [1]}, "column `domain` holds int64; expected strings"),
        ({"text": pyarrow.array([], pyarrow.string())}, "no documents of domain 'zh'"),
        ({"text": ["a"], "domain": ["zho"]}, r"no documents of domain 'zh' \(it holds records of zho\)"),
    ],
)
def test_a_table_without_documents_is_named(tmp_path: Path, columns: Dict[str, Any], told: str) -> None:
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(InputError, match=rf"a\.parquet: {told}"):
        texts(path)


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["some text"] * 50})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read \(.*\); expected a Parquet file"):
        texts(path)


def test_bytes_that_are_no_utf8_are_named_with_their_row(tmp_path: Path) -> None:
    wrong = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xff\xfe")
    )
    path = write(tmp_path / "a.parquet", {"text": wrong})
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read \(.*utf-8.*\)"):
        texts(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pyarrow, which reads it, is not installed; .*pip install 'pyarrow<22'"):
        texts(path)
