"""The guides say what there is: messages that the program has, keys and commands that exist, words once; and the
Chinese guides say what the English ones say.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from pangu_sigma.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
TRANSLATED = ("report", "data", "troubleshooting")
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADS = ("message", "报错信息")  # of the first column of tables of messages


def page(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def without_blocks(text):
    return BLOCK.sub("", text)


def rows(text):
    """The cells of each row of a page's tables, heads and rules left out."""
    found = []
    for table in re.findall(r"(?m)(?:^\|.*\|$\n?)+", without_blocks(text)):
        found += [re.split(r"\s*(?<!\\)\|\s*", line.strip())[1:-1] for line in table.splitlines()[2:]]
    return found


def in_backticks(text):
    return [re.sub(r"\s+", " ", words) for words in re.findall(r"`([^`]+)`", text)]


# ---- troubleshooting


@pytest.fixture(scope="module")
def texts():
    """What the program may say: each text of its sources but docstrings, with a NUL for what is filled in; of launchers
    each line.
    """
    found = set()
    for path in (path for folder in ("pangu_sigma", "locmoe_ops") for path in (REPOSITORY / folder).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.add(node.value)
    for path in (REPOSITORY / "scripts").glob("*.sh"):
        lines = path.read_text(encoding="utf-8").splitlines()
        found.update(line for line in lines if not line.lstrip().startswith("#"))
    return found


def messages(text):
    """The messages that a page's tables of messages name."""
    found = []
    for head, table in re.findall(r"(?m)^\| ([^|]+) \|.*\n\|[-| ]+\|\n((?:\|.*\|\n?)+)", without_blocks(text)):
        if head in HEADS:
            found += [words for line in table.splitlines() for words in in_backticks(line.split(" | ")[0])]
    return found


def test_every_message_is_one_of_the_program(texts):
    named = messages(page("troubleshooting"))
    assert len(named) > 80
    gone = [words for words in named if not occurs(words, texts)]
    assert not gone, f"docs/troubleshooting.md names messages that nothing says any more: {gone}"


def occurs(words, texts):
    """Whether a text has these words; `...` stands for what is filled in, and for what the page leaves out."""
    pattern = re.compile(".*?".join(map(re.escape, words.split("..."))), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def test_a_message_that_is_gone_is_noticed(texts):
    assert occurs("train.output_dir: ... holds an earlier run (", texts)
    assert not occurs("train.output_dir: ... holds a later run (", texts)


def test_no_message_is_explained_twice():
    assert [words for words, count in Counter(messages(page("troubleshooting"))).items() if count > 1] == []


# ---- keys and commands


@pytest.fixture(scope="module")
def keys():
    """Every key of the reference, which the schema makes, with what its row says of type and choices."""
    return dict(re.findall(r"(?m)^\| `([a-z_0-9.]+)` \| ([^|]+) \|", page("configuration")))


@pytest.fixture(scope="module")
def commands():
    return next(action.choices for action in cli._parser()._actions if isinstance(action.choices, dict))


SECTION = r"(model|moe|parallel|data|optimizer|train|checkpoint|runtime)\."
GUIDES = ("coming_from", "data", "report", "troubleshooting")


@pytest.mark.parametrize("name", GUIDES)
def test_keys_and_their_values_exist(name, keys):
    """In the guide for users of other frameworks, but for the columns of those."""
    text = without_blocks(page(name))
    if name == "coming_from":
        text = re.sub(r"(?m)^\|[^|]+\|", "|", text)
    for words in in_backticks(text):
        found = re.fullmatch(rf"(?:--set )?'?({SECTION}[a-z_0-9.]+)(?:(?:: |=)(\S+?))?'?", words)
        if found and not any(key.startswith(f"{found[1]}.") for key in keys):  # no section
            assert found[1] in keys, f"docs/{name}.md: there is no key {found[1]}"
            choices = re.findall(r"`([^`]+)`", keys[found[1]])
            assert not found[3] or not choices or found[3] in choices, f"docs/{name}.md: {words}: expected {choices}"


@pytest.mark.parametrize("row", [row for row in rows(page("coming_from"))], ids=lambda row: row[0][:60])
def test_what_a_name_becomes_exists(row, keys, commands):
    """The middle column: a key, a command, a launcher, a function of the layer, or a dash with a remark or a reason."""
    theirs, ours, remark = row
    assert theirs.count("`") or theirs.startswith("MoE") or theirs.startswith("a dense"), row
    assert (ours == "-") != bool(in_backticks(ours)), f"{theirs}: found {ours!r}, expected names or a dash"
    assert ours != "-" or remark, f"{theirs}: say what comes nearest"
    for words in in_backticks(ours):
        if words.startswith("pangu-sigma "):
            first, *rest = words.split()[1:]
            assert first in commands, words
            inner = next((a.choices for a in commands[first]._actions if isinstance(a.choices, dict)), {})
            assert not rest or rest[0] in inner, words
        elif words.startswith("scripts/"):
            assert (REPOSITORY / words).is_file(), words
        elif words.startswith("locmoe_ops."):
            module, _, function = words.rpartition(".")
            source = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
            assert re.search(rf"(?m)^def {function}\(", source), words
        else:
            key = re.sub(r"^--set |[:=].*$", "", words)
            assert key in keys, f"{theirs}: there is no key {key}"


# ---- glossary

# Those that the code is written in.
WORDS = """rank, node, device, micro-batch, global batch, sequence, token, expert, expert group, gate, router, score,
top-k, selection bias, assignment, slot, capacity, capacity factor, keep mask, dispatch, combine, all-to-all,
intra-node, inter-node, shard, bucket, overlap, home rank, router spec, router context, resume"""


def test_the_glossary_has_each_word_once():
    found = [word.strip() for term, _, _ in rows(page("glossary")) for word in re.split(r"[,:] ", term)]
    assert [word for word, count in Counter(found).items() if count > 1] == []
    assert {word.strip() for word in WORDS.split(",")} <= set(found)


def test_every_word_has_a_meaning_and_a_chinese_word():
    for term, chinese, meaning in rows(page("glossary")):
        assert term and chinese and len(meaning) > 5, term


def test_chinese_pages_use_the_words_of_the_glossary():
    """The words that Ascend's users know; others that mean the same do not stand beside them."""
    glossary = page("glossary")
    for word in "集合通信 专家容量 容量因子 负载均衡 分发与合并 断点续训 多机多卡 通信掩盖 逐比特一致 单步耗时".split():
        assert word in glossary, word
    for name in TRANSLATED:
        for word in ("集体通信", "容量系数", "负载平衡", "逐位相同", "续跑"):
            assert word not in page(f"zh/{name}"), f"docs/zh/{name}.md: {word}"


def test_contributing_points_to_the_glossary():
    """One list of words, not two."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    words = text.partition("\n## Words\n")[2].partition("\n## ")[0]
    assert "](docs/glossary.md)" in words and "\n|" not in words


# ---- Chinese


def code(language, content):
    """A block without its comments; an output as it is."""
    return [re.sub(r"\s*(?<!\S)# .*", "", line).rstrip() if language else line for line in content.splitlines()]


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_chinese_guide_says_the_same(name):
    english, chinese = page(name), page(f"zh/{name}")
    levels = [[len(marks) for marks in re.findall(r"(?m)^(#+) ", without_blocks(text))] for text in (english, chinese)]
    assert levels[0] == levels[1], "headings"
    assert [len(row) for row in rows(english)] == [len(row) for row in rows(chinese)], "rows of tables"
    left, right = ([code(*block) for block in BLOCK.findall(text)] for text in (english, chinese))
    assert left == right, "blocks"
    named = [Counter(in_backticks(without_blocks(text))) for text in (english, chinese)]
    assert named[0] == named[1], f"only in English: {named[0] - named[1]}; only in Chinese: {named[1] - named[0]}"
    assert messages(english) == messages(chinese)
    numbers = [Counter(re.findall(r"\d+\.\d+", without_blocks(text))) for text in (english, chinese)]
    assert numbers[0] == numbers[1], f"numbers: {numbers[0] - numbers[1]}, {numbers[1] - numbers[0]}"


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_languages_lead_to_each_other(name):
    assert f"](zh/{name}.md)" in page(name).partition("\n## ")[0]
    assert f"](../{name}.md)" in page(f"zh/{name}").partition("\n## ")[0]
    for target in re.findall(r"\]\(([^)\s#]+)", page(f"zh/{name}")):
        place = DOCS / "zh" / target
        assert re.match(r"https?:", target) or place.exists(), f"docs/zh/{name}.md: {target}"
        translated = target.startswith("../") and Path(target).stem in TRANSLATED and Path(target).stem != name
        assert not translated, f"docs/zh/{name}.md: {target} is there in Chinese"


@pytest.mark.parametrize("name", TRANSLATED)
def test_chinese_is_set_as_chinese(name):
    """A line break inside a paragraph would show as a blank; so would one before %, or between Chinese characters."""
    lines = without_blocks(page(f"zh/{name}")).splitlines()
    for first, second in zip(lines, lines[1:]):
        prose = first.strip() and second.strip() and not re.match(r"\||#|\s*([-*]|\d+\.) ", second)
        assert not prose or first.startswith(("|", "#")), f"a paragraph is broken before: {second[:60]}"
    text = "\n".join(re.sub(r"`[^`]+`", "x", line) for line in lines)
    assert not re.findall(r".{20}\d %", text), "a blank before %"
    assert not re.findall(r".{10}[\u4e00-\u9fff] +[\u4e00-\u9fff].{10}", text), "a blank between Chinese characters"
    assert not re.findall(r".{10}[\u4e00-\u9fff][,;?!](?= |$|[\u4e00-\u9fff])", text), "a Western mark after Chinese"
