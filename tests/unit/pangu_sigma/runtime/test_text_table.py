"""The one layout of tables, worked out by hand."""

import unicodedata

import pytest

from pangu_sigma.runtime.text_table import RULE, TableColumn, display_width, text_table, wrapped

WORDS, NUMBER, PROSE = TableColumn("name", "<"), TableColumn("tokens\nper s"), TableColumn("what", "<", wraps=True)


def test_columns_are_as_wide_as_what_they_hold():
    rows = [("a", "5", "first"), ("longer", "12,345", ""), RULE, ("", "7", "last")]
    assert text_table((WORDS, NUMBER, PROSE), rows) == [
        "        tokens",
        "name     per s  what",
        "---------------------",
        "a            5  first",
        "longer  12,345",
        "---------------------",
        "             7  last",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["name", "----", "a"]),
        ({"rule": False}, ["name", "a"]),
        ({"indent": 2}, ["  name", "  ----", "  a"]),
    ],
)
def test_rule_and_indent(options, expected):
    assert text_table([WORDS], [("a",)], **options) == expected


def test_without_titles_there_is_no_head():
    assert text_table([TableColumn(align="<"), TableColumn()], [("a", "1"), ("bc", "20")]) == ["a    1", "bc  20"]


def test_rows_that_come_one_by_one_have_the_same_widths():
    columns = (TableColumn("n", least=6), TableColumn("name", "<", least=5))
    head, first, second = (text_table(columns, rows, rule=False) for rows in ([], [("1", "a")], [("123456", "abcde")]))
    assert head == ["     n  name"] and first[1:] == ["     1  a"] and second[1:] == ["123456  abcde"]


WIDE = "话说天下大势"  # six characters of two columns


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), (WIDE, 12), ("e\u0301", 1), ("", 0), ("ｆ", 2)])
def test_columns_of_a_terminal(text, columns):
    assert display_width(text) == columns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", ["one two", "  three"]),
        ("天下 大势 分久", ["天下", "  大势", "  分久"]),  # a wide line ends a column earlier: 8 - 1
        ("天下大势", ["天下大", "  势"]),
        ("a天下大势", ["a天下大", "  势"]),
        ("", []),
    ],
)
def test_lines_are_broken_by_columns_of_a_terminal(text, expected):
    assert wrapped(text, 8, subsequent_indent="  ") == expected


def test_chinese_names_keep_the_numbers_below_each_other():
    lines = text_table([TableColumn("domain", "<"), TableColumn("n")], [(WIDE, "1"), ("en", "22")])
    assert [_columns(line) for line in lines[2:]] == [12 + 2 + 2] * 2


@pytest.mark.parametrize("word", ["word ", "x" * 200, "/a/long/path" * 20, WIDE * 20])
@pytest.mark.parametrize("indent", [0, 4])
def test_long_texts_continue_below_within_79_columns(word, indent):
    text = (word * 60)[:400].strip()
    lines = text_table((WORDS, NUMBER, PROSE), [("a", "1", text), ("b", "2", "short")], indent)
    assert max(map(_columns, lines)) <= 79
    shown = "".join(line[indent:] for line in lines[3:-1]).replace(" ", "")
    assert shown.replace("a1", "", 1) == text.replace(" ", "")  # nothing is lost
    assert lines[-1].split() == ["b", "2", "short"]


def test_two_long_columns_share_the_room():
    columns = (TableColumn("one", "<", wraps=True), TableColumn("two", "<", wraps=True))
    lines = text_table(columns, [("a " * 100, "b " * 100)])
    assert max(map(_columns, lines)) <= 79 and all(39 >= line.count("a") >= 0 for line in lines)


def test_what_does_not_wrap_is_not_cut():
    name = "blocks.3.attention.qkv_projection.weight" * 3
    assert name in "\n".join(text_table([TableColumn("tensor", "<"), TableColumn("n")], [(name, "1")]))


def test_gaps_give_way_before_texts_are_wrapped():
    columns = [TableColumn(str(place)) for place in range(20)]
    (line,) = text_table(columns, [["123"] * 20], rule=False)[1:]
    assert line == " ".join(["123"] * 20) and len(line) == 79


def _columns(line):
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)
