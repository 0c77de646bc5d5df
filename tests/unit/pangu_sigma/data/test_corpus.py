import json
from pathlib import Path
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from pangu_sigma.data.corpus import cut, read_documents


def texts(domain: str, source: Path, **options: int) -> List[str]:
    return [document.text for document in read_documents(domain, str(source), **options)]


def test_folder_is_read_by_path_and_kept_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.md").write_bytes(b"# last\r\n")
    (tmp_path / "a.txt").write_bytes("  first\n天".encode())
    (tmp_path / "a.png").write_bytes(b"\xff\xd8")
    assert texts("en", tmp_path) == ["  first\n天", "# last\r\n"]


def test_one_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("once")
    assert texts("en", tmp_path / "novel.txt") == ["once"]


def test_jsonl_serves_several_domains(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    records = [{"text": "a", "domain": "en"}, {"text": "乙", "domain": "zh"}, {"text": "both"}]
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    assert texts("en", path) == ["a", "both"]
    assert texts("zh", path) == ["乙", "both"]


def test_byte_limit_cuts_the_last_document_between_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc", encoding="utf-8")
    (tmp_path / "b.txt").write_text("天下大势", encoding="utf-8")
    (tmp_path / "c.txt").write_text("never read", encoding="utf-8")
    assert texts("en", tmp_path, max_bytes=10) == ["abc", "天下"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "a"', "broken JSON"),
        (b"[1, 2]", "found a list"),
        (b"null", "found null"),
        (b'{"body": "a"}', r"`text` is missing.*body\); data\.prepare\.text_key names another"),
        (b"{}", "`text` is missing.*none"),
        (b'{"text": 5}', "`text` is a number"),
        (b'{"text": null}', "`text` is null"),
        (b'{"text": ' + b"7" * 5000 + b"}", "an integer of 5000 digits"),
        (b'{"text": "a", "n": ' + b"7" * 5000 + b"}", "an integer of 5000 digits"),
        (b'{"text": "a", "text": "b"}', "'text' is given twice"),
        (b'{"text": "\\ud83d"}', "surrogate"),
        (b'{"text": "a", "domain": "\\ud83d"}', "surrogate"),
        (b'{"text": "a", "domain": ["en"]}', "`domain` is a list"),
        (b'{"text": "a", "domain": 1}', "`domain` is a number"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "broken JSON"),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path: Path, line: bytes, complaint: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"x\.jsonl:2: .*{complaint}"):
        texts("en", tmp_path / "x.jsonl")


def test_records_of_other_domains_only(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a", "domain": "eng"}\n')
    with pytest.raises(InputError, match=r"x\.jsonl: no documents of domain 'en' \(it holds records of eng\)"):
        texts("en", tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"ab\xe5\x28", r"not UTF-8 text \(byte 2\)"), (b"\xff\xfea\0", "not UTF-8 text")]
)
def test_a_bad_text_file_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "fine.txt").write_text("fine")
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.txt: .*{complaint}"):
        texts("en", tmp_path)


@pytest.mark.parametrize(
    ("name", "complaint"), [("missing", "does not exist"), ("empty", "no text files"), ("image.png", "unknown type")]
)
def test_a_source_without_text_is_named_with_its_key(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=rf"data\.prepare\.sources\.en: .*{name}.*{complaint}|{complaint}.*{name}"):
        texts("en", tmp_path / name)


@given(st.text(st.sampled_from("ab \n天\U0001f600\r"), max_size=120), st.integers(4, 40))
def test_pieces_join_to_the_text_and_keep_the_limit(text: str, limit: int) -> None:
    pieces = cut(text, limit)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= limit for piece in pieces)


def test_pieces_end_at_line_ends_where_lines_fit() -> None:
    assert cut("aaaa\nbb\ncccc\n" + "d" * 25, 10) == ["aaaa\nbb\n", "cccc\n", "d" * 10, "d" * 10, "d" * 5]
