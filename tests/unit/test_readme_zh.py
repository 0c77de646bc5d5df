"""README.zh.md says what README.md says: the same headings, blocks, commands, keys, links and measured numbers."""

import re
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("README.md", "README.zh.md")
ENGLISH, CHINESE = ((REPOSITORY / name).read_text(encoding="utf-8") for name in NAMES)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def headings(text):
    return re.findall(r"(?m)^(#+) (.*)$", BLOCK.sub("", text))


def blocks(text):
    """Language and content, comments left out; of a block that describes files, the files."""
    return [(language, code(content) if language else named(content)) for language, content in BLOCK.findall(text)]


def code(content):
    return [re.sub(r"\s*(?<!\S)# .*", "", line).rstrip() for line in content.splitlines()]


def named(content):
    """An output as it is; of the tree of files, what stands before two spaces, and files named behind them."""
    if not re.search(r"(?m)^\w+/", content):
        return content.splitlines()
    return [[len(line) - len(line.lstrip()), re.findall(r"\b[a-z_]+(?:\.py|/)", line)] for line in content.splitlines()]


def in_backticks(text):
    return [re.sub(r"\s+", " ", words) for words in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]


def links(text):
    return [target for target in re.findall(r"\]\(([^)]+)\)", text) if target not in NAMES]


def measured(text):
    return re.findall(r"\d+\.\d+", BLOCK.sub("", text))


def table_rows(text):
    return [
        f"table row {number} has {line.count(' | ')} columns after the first"
        for number, line in enumerate(re.findall(r"(?m)^\|.*\|$", BLOCK.sub("", text)))
    ]


@pytest.mark.parametrize("what", [in_backticks, links, measured, table_rows])
def test_the_same(what):
    english, chinese = Counter(what(ENGLISH)), Counter(what(CHINESE))
    assert english == chinese, (
        f"{what.__name__}: only in README.md: {sorted((english - chinese).elements())}; "
        f"only in README.zh.md: {sorted((chinese - english).elements())}"
    )


def test_headings():
    english, chinese = headings(ENGLISH), headings(CHINESE)
    pairs = [
        f"{left[0]} {left[1]} / {right[0]} {right[1]}" for left, right in zip(english, chinese) if left[0] != right[0]
    ]
    assert not pairs, f"headings of another level: {pairs[0]}"
    assert len(english) == len(chinese), f"{len(english)} headings in README.md, {len(chinese)} in README.zh.md"
    assert not {title for _, title in english} & {title for _, title in chinese}, "a heading is not translated"


def test_blocks():
    """Commands, examples and outputs, line by line."""
    english, chinese = blocks(ENGLISH), blocks(CHINESE)
    for number, (left, right) in enumerate(zip(english, chinese), start=1):
        assert left[0] == right[0], f"block {number}: {left[0]!r} in README.md, {right[0]!r} in README.zh.md"
        for one, other in zip(left[1], right[1]):
            assert one == other, f"block {number} differs:\n  README.md:    {one}\n  README.zh.md: {other}"
        assert len(left[1]) == len(right[1]), (
            f"block {number}: {len(left[1])} lines in README.md, {len(right[1])} in README.zh.md"
        )
    assert len(english) == len(chinese), f"{len(english)} blocks in README.md, {len(chinese)} in README.zh.md"


def test_each_leads_to_the_other():
    assert "](README.zh.md)" in ENGLISH and "](README.md)" in CHINESE
