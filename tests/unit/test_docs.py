"""Commands in the docs: each parses, has only options that there are, and names files that exist. Links lead somewhere,
too.

Checked are the lines of bash blocks, and in the text what stands in backticks and begins like a command. What can only
run where there is Ascend stands in a section that says so.
"""

import re
import shlex
from pathlib import Path

import pytest

from pangu_sigma.cli import main as cli
from pangu_sigma.config.load import load_config
from pangu_sigma.config.validate import validate

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
OURS = re.compile(r"(configs|scripts|tests|docs|locmoe_ops|pangu_sigma)/[\w./-]*\w")
ASCEND_ONLY = re.compile(
    r"\b(npu-smi|hccn_tool)\b|/usr/local/Ascend|configs/ascend|(train_rank_table\.sh|launch) --rank-table|"
    r"--nodes-file .*--env-file"
)
ANYWHERE = ("--dry-run", "pangu-sigma plan", "pangu-sigma config", "pangu-sigma audit", "pangu-sigma doctor")
MARK = re.compile(r"needs Ascend|需要昇腾")
HOLDERS = {
    "...",
    "RUN",
    "PATH",
    "CONFIG",
    "SOURCE",
    "TARGET",
    "FILE",
    "FOLDER",
    "N",
}  # stand for something in a description of a command


def blocks(text, language):
    """Each block's lines with their section's text; lines that end in a backslash are joined with the next."""
    for section in sections(text):
        for block in re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL):
            yield re.sub(r"\\\n\s*", "", block).splitlines(), section


def sections(text):
    """Cut before each heading; what looks like one inside a block is a comment."""
    found = [""]
    for part in re.split(r"(```.*?```|^(?=#+ ))", text, flags=re.DOTALL | re.MULTILINE):
        found[-1] += part
        if not part:
            found.append("")
    return found


def prose(text):
    """What stands in backticks outside of blocks, on one line each."""
    return [
        re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]


def commands(line, variables):
    """The simple commands of a line, as words. Variables that the block sets are put in, others become a name."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        named = re.fullmatch(r"\$\{?(\w+)\}?", word)
        if named and named[1] in variables:
            words += shlex.split(variables[named[1]])
        else:
            words.append(re.sub(r"\$\{?\w+(\[@\])?\}?", "name", word))
    found = [[]]
    for before, word in zip(["", *words], words):
        if re.fullmatch(r"[|&;]+", word) or word == "--" or word in ("do", "time") or before == "done":
            found.append([])
        else:
            found[-1].append(word)
    return [command for command in found if command]


def ours(text):
    """Commands of this project: (where they stand, words)."""
    found = []
    for lines, _ in blocks(text, "bash"):
        variables = {}
        for line in lines:
            assigned = re.fullmatch(r'(\w+)="([^"]*)"', line.strip())
            if assigned:
                variables[assigned[1]] = assigned[2]
            elif line.strip() and not line.lstrip().startswith("#"):
                found += [(line.strip(), command) for command in commands(line, variables)]
    for code in prose(text):
        if re.match(r"(pangu-sigma|(bash|python) scripts/|pytest) \S", code):
            found += [(code, command) for command in commands(code.replace("[", " ").replace("]", " "), {})]
    return found


ALL = [
    pytest.param(words, id=f"{page.name}: {line}"[:120])
    for page in PAGES
    for line, words in ours(page.read_text(encoding="utf-8"))
]


def test_the_pages_have_commands():
    assert len(ALL) > 60 and len(PAGES) >= 8


@pytest.mark.parametrize("words", ALL)
def test_command(words):
    for path in (found[0] for word in words for found in [OURS.match(word)] if found):
        assert (REPOSITORY / path).exists(), f"{path} does not exist"
    words = [word for word in words if word != "..."]
    if words[0] == "pangu-sigma":
        if set(words) & HOLDERS or all(re.fullmatch(r"[a-z-]+", word) for word in words):
            described(words[1:])
        else:
            check_keys(cli._parser().parse_args(words[1:]))
    elif words[0] in ("bash", "python") and words[1].startswith("scripts/"):
        text = (REPOSITORY / words[1]).read_text(encoding="utf-8")
        if "become_launcher" in text:
            return described(["launch", *(word for word in words[2:] if word.startswith("--"))])
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        missing = {option for option in options if not re.search(rf"{option}(?![\w-])", text)}
        assert not missing, f"{words[1]} has no {', '.join(sorted(missing))}"


def check_keys(given):
    """A shipped configuration with a command's `--set` is one that the command takes, on as few ranks as hold it."""
    config = getattr(given, "config", None)
    if not config or not config.startswith("configs/") or given.command == "compare" or given.router_files:
        return
    changed = load_config(REPOSITORY / config, given.overrides)
    validate(changed, changed.parallel.expert * changed.parallel.tensor)


def test_whose_rule_faster_moe_follows_is_said():
    """By default it is neither the published gate nor the fastmoe library's, and nothing here says so."""
    page = (REPOSITORY / "docs/routers.md").read_text(encoding="utf-8")
    assert "is by default a cap after FasterMoE's (PPoPP 2022), not its published gate" in page
    for row in ("who may leave", "experts and weights", "loss"):
        assert re.search(rf"^\| {row}\b.*\|.*\|.*\|$", page, re.MULTILINE), row
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("configs/**/*.yaml")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"peers?,? (each )?as (its|their) papers? ha", text, re.IGNORECASE), path


def described(words):
    """A command whose arguments are names of what they stand for: its subcommands and options exist."""
    parser = cli._parser()
    while True:
        inner = next((action.choices for action in parser._actions if isinstance(action.choices, dict)), {})
        if not words or words[0] not in inner:
            break
        parser, words = inner[words[0]], words[1:]
    assert not inner or not words or words[0].startswith("-"), f"no such command: {words[0]}"
    known = {option for action in parser._actions for option in action.option_strings}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_needs_ascend_is_marked(page):
    for lines, section in blocks(page.read_text(encoding="utf-8"), "bash"):
        needing = [line for line in lines if ASCEND_ONLY.search(line) and not any(word in line for word in ANYWHERE)]
        assert not needing or MARK.search(section), f"{page.name}: say that this needs Ascend: {needing[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    """Relative ones; of those to a heading, the heading is there as well."""
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        target = "".join(target)
        if not re.match(r"https?:|mailto:", target):
            path, _, anchor = target.partition("#")
            place = page.parent / path if path else page
            assert place.exists(), f"{page.name}: {target} does not exist"
            assert not anchor or anchor in anchors(place.read_text(encoding="utf-8")), (
                f"{page.name}: {target}: no such heading"
            )


def anchors(text):
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tutorials_files(tmp_path, monkeypatch):
    """Saved under the names that they begin with, they are a configuration and a comparison of it."""
    from pangu_sigma.compare.comparison import load_plan
    from pangu_sigma.config.load import load_config
    from pangu_sigma.config.validate import validate

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for lines, _ in blocks((REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8"), "yaml"):
        (tmp_path / lines[0].lstrip("# ")).write_text("\n".join(lines))
    validate(load_config("mine/config.yaml"), 1)
    assert [run.variant for run in load_plan("mine/compare.yaml").runs] == ["hash", "switch", "locmoe"]


def test_what_is_to_be_installed_can_be():
    """Each `pip install` names the checkout, a wheel, or what setup.py requires: the project is on no package index,
    where its name may come to be anybody's. (The changelog says what earlier versions had.)"""
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")
    found = re.findall(r"pip install ([^`\n#;]+)", pages)
    assert len(found) >= 5
    for word in shlex.split(" ".join(found)):
        if not word.startswith("-") and not re.fullmatch(r"\.|\S+\.whl", word):
            extras = re.fullmatch(r"\.\[([\w,]+)\]", word)
            names = extras[1].split(",") if extras else [re.split("[<>=]", word)[0]]
            assert all(f'"{name}' in setup for name in names), f"pip install {word}: nothing that setup.py requires"
    for path in (
        path for folder in ("pangu_sigma", "locmoe_ops", "scripts") for path in (REPOSITORY / folder).rglob("*.py")
    ):
        assert not re.search("pip install [^\n]*pangu-sigma", path.read_text(encoding="utf-8")), path


def test_the_architecture_page_leads_to_what_there_is():
    """Each row of the reader's table names a file, and in it a definition."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = page.partition("| question | file | where |\n|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert len(rows) >= 10
    for row in rows:
        file, named = re.fullmatch(r"\| [^|]+ \| `([^`]+)` \| (.+) \|", row).groups()
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", named):
            assert re.search(rf"^(class|def|    def) {name}\b|^{name}\b|^    def {name}\b", text, re.MULTILINE), (
                f"{file}: {name}"
            )
