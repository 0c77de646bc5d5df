"""Chinese pages: the blocks, headings and commands of the English ones, the words that users of Ascend use, and text
that renders as it is meant: Chinese has no blanks between words, so a line end inside a paragraph is one too many.
"""

import re
from pathlib import Path
from typing import List, Tuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted((REPOSITORY / "docs" / "zh").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TERMS = (  # what users of Ascend say, and what they do not say for it
    ("集合通信", "集体通信|聚合通信|集合通讯"),
    ("专家容量", "专家的容量|专家容积"),
    ("容量因子", "容量系数|容量比例|按系数"),
    ("负载均衡", "负载平衡|负荷均衡"),
    ("分发与合并", "派发与|分派与|分发与组合|分发和组合"),
    ("断点续训", "续跑|断点恢复|恢复训练"),
    ("多机多卡", "多节点多卡|多机器多设备"),
    ("通信掩盖", "(?<!与)通信重叠|通信隐藏|重叠通信|隐藏通信|通信被隐藏"),
    ("逐比特一致", "逐位(相同|一致)|按位(相同|一致)|比特级一致"),
    ("单步耗时", "每步(时间|耗时)|步时间|单步时间|一步的时间(?!去向)"),
    ("卡", "显卡|加速卡"),
)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def texts(page: Path) -> Tuple[str, str]:
    """The English page and its translation."""
    return tuple(path.read_text(encoding="utf-8") for path in (page.parents[1] / page.name, page))


def prose(text: str) -> str:
    """The text without its blocks, and without what stands in backticks."""
    return re.sub(r"`[^`\n]+`", "``", BLOCK.sub("", text))


def hard_breaks(text: str) -> List[str]:
    """Lines that continue the one before: neither begins anything, nor follows what ends with its line."""
    begins, ends = r"\s*([|#>]|[-*] |\d+\. |<|```|:::)", r"\s*([|#]|<[^>]*>$)"
    lines = BLOCK.sub("\n", text).splitlines()
    return [
        line
        for before, line in zip(lines, lines[1:])
        if before.strip() and line.strip() and not re.match(begins, line) and not re.match(ends, before)
    ]


def blanks_before_percent(text: str) -> List[str]:
    return re.findall(r"\S*\d\s+%", prose(text))


def unclosed_emphasis(text: str) -> List[str]:
    """Stars behind a mark and before a letter: by CommonMark these do not close emphasis, and are shown as stars."""
    spans = re.finditer(r"(\*{1,2})([^*\n]+)\1(\w?)", prose(text))
    return [span[0] for span in spans if span[2][-1] in "，。：；！？、）》" and span[3]]


def other_words(text: str) -> List[str]:
    return [f"{found[0]}: {term}" for term, others in TERMS for found in re.finditer(others, prose(text))]


RULES = (hard_breaks, blanks_before_percent, unclosed_emphasis, other_words)


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "README.zh.md"], ids=lambda page: page.name)
@pytest.mark.parametrize("rule", RULES)
def test_text(page, rule):
    assert not rule(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (hard_breaks, "一段文字，\n在这里断开。"),
        (hard_breaks, "- 一项，\n  接着写。"),
        (hard_breaks, "1. 一项\n接着写。"),
        (blanks_before_percent, "占 12.5 % 的时间"),
        (blanks_before_percent, "| 49 % |"),
        (unclosed_emphasis, "**流。**逐算子"),
        (unclosed_emphasis, "*检查：*最后一行"),
        (other_words, "轨迹逐位相同"),
        (other_words, "可续跑"),
    ],
)
def test_rules_find(rule, text):
    assert len(rule(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "# 标题\n一段。\n\n- 一项\n- 两项\n\n| 甲 | 乙 |\n|---|---|\n| 49% | 1 |\n",
        "一段：\n\n```bash\npangu-sigma plan x   # 12 %\n  --nodes 2\n```\n\n另一段。",
        "**流**。逐算子，**已编译**，*检查*：最后",
        "取 `a % b`，逐比特一致",
    ],
)
def test_rules_let_pass(text):
    assert not [found for rule in RULES for found in rule(text)]


def test_the_terms_are_used():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [term for term, _ in TERMS if term not in text]


def code(content: str) -> List[str]:
    """A block's lines without comments: only these are translated."""
    return [re.sub(r"\s*(?<!\S)# .*", "", line).rstrip() for line in content.splitlines()]


@pages
def test_blocks_are_those_of_the_english_page(page):
    english, chinese = ([(name, code(content)) for name, content in BLOCK.findall(text)] for text in texts(page))
    for number, (left, right) in enumerate(zip(english, chinese), start=1):
        assert left == right, f"block {number} of {page.name}"
    assert len(english) == len(chinese)


@pages
def test_commands_in_the_text_are_those_of_the_english_page(page):
    command = r"`((?:pangu-sigma|bash|python|pytest) [^`]+|--[a-z-]+[^`]*)`"
    english, chinese = (sorted(re.findall(command, re.sub(r"\s+", " ", BLOCK.sub("", text)))) for text in texts(page))
    assert english == chinese


@pages
def test_headings_and_rows_are_those_of_the_english_page(page):
    """Levels of headings, numbers of cells, and that a heading is translated unless it is a name."""
    shapes = []
    for text in texts(page):
        rest = BLOCK.sub("", text)
        cells = [row.count(" | ") for row in re.findall(r"(?m)^\|.*\|$", rest)]
        shapes.append((re.findall(r"(?m)^#+(?= )", rest), cells))
    assert shapes[0] == shapes[1]


@pages
def test_each_leads_to_the_other(page):
    english, chinese = texts(page)
    assert f"[中文](zh/{page.name})" in english and f"[English](../{page.name})" in chinese
