"""The documentation as a site: built strictly in both languages, without network, with links that lead somewhere."""

import json
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
HOOKS = runpy.run_path(str(REPOSITORY / "scripts" / "site_hooks.py"))
ENGLISH, CHINESE = ({path.stem for path in folder.glob("*.md")} for folder in (DOCS, DOCS / "zh"))


class Page(HTMLParser):
    """What a page of the site leads to, what it fetches by itself, and the places that can be led to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.fetched, self.anchors, self.language = [], [], {""}, ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "html":
            self.language = values["lang"]
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif values.get("src") or (tag == "link" and values.get("rel") in ("stylesheet", "icon", "preconnect")):
            self.fetched.append(values.get("src") or values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, by its only command, which a warning ends."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    unreachable = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **unreachable, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def page_of(site, name, language=""):
    return site / language / ("" if name == "index" else name) / "index.html"


def test_every_page_is_there_in_both_languages(site, pages):
    for name in ENGLISH:
        assert pages[page_of(site, name)].language == "en"
        assert pages[page_of(site, name, "zh")].language == "zh"  # its menus, if not its text


def test_translations_are_shown(site):
    for name in CHINESE:
        heading = re.search("(?m)^# (.*)$", (DOCS / "zh" / f"{name}.md").read_text(encoding="utf-8"))[1]
        assert heading in page_of(site, name, "zh").read_text(encoding="utf-8")
        assert heading not in page_of(site, name).read_text(encoding="utf-8")


def test_menus_have_every_page_and_are_translated(site, pages):
    for language in ("", "zh"):
        root = site / language
        links = [unquote(link) for link in pages[root / "index.html"].links if not urlsplit(link).scheme]
        menu = {(root / link).resolve() for link in links}
        assert not {name for name in ENGLISH if page_of(site, name, language).parent.resolve() not in menu}
    text = page_of(site, "index", "zh").read_text(encoding="utf-8")
    assert "入门" in text and "First steps" not in text
    settings = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    titles = re.findall(
        r"(?m)^ +- (.+?):(?: \w+\.md)?$", settings[settings.index("\nnav:") : settings.index("\nplugins:")]
    )
    found = [title for title in titles if re.search(rf">\s*{re.escape(title)}\s*<", text)]
    assert len(titles) > len(ENGLISH) and not found, f"without a Chinese name in mkdocs.yml: {found}"


def test_links_lead_somewhere(site, pages):
    """All of them, those to other places of a page and those that the hook makes included."""
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto") or path.name == "404.html":
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif target.suffix == ".html" and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.relative_to(site)}: {link}: no such place")
    assert not broken, "\n".join(broken)


def test_nothing_is_fetched_from_elsewhere(site, pages):
    outside = {found for page in pages.values() for found in page.fetched if urlsplit(found).netloc}
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert not outside and not [style for style in styles if re.search(r"url\(\W?https?:|@import", style)]


def test_files_outside_of_the_documentation_are_on_the_site(site, pages):
    name = "configs/ascend/pangu_sigma_small_8.yaml"
    copy = site / "source" / f"{name}.txt"
    assert copy.read_bytes() == (REPOSITORY / name).read_bytes()
    for language in ("", "zh"):
        page = page_of(site, "ascend", language)
        assert copy.resolve() in {(page.parent / link).resolve() for link in pages[page].links}


def test_the_notebook_is_on_the_site(site):
    assert (site / "tutorial.ipynb").read_bytes() == (DOCS / "tutorial.ipynb").read_bytes()


def test_the_reference_of_the_api(site, pages):
    """Each name has its place, and each argument of a function its line, also where docstrings have several on one."""
    page = page_of(site, "api")
    names = re.findall(r"(?m)^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"))
    assert len(names) > 20 and not [name for name in names if name not in pages[page].anchors]
    text = page.read_text(encoding="utf-8")
    entry = text[text.index('id="locmoe_ops.moe.build_moe"') : text.index('id="locmoe_ops.moe.MoEFeedForward"')]
    arguments = [re.sub("<[^>]+>", "", item).split()[0] for item in re.findall("<li.*?</li>", entry, re.DOTALL)]
    assert [name for name in ("tokens", "hidden_size", "top_k", "seed", "tag") if name not in arguments] == []


def test_the_search_index_holds_both_languages(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    text = {"": "", "zh": ""}
    for entry in index["docs"]:
        text["zh" if entry["location"].startswith("zh/") else ""] += entry["title"] + entry["text"]
    chinese, english = "用自己的文本训练自己的模型", "from your own text to a model of your own"
    assert chinese in text["zh"] and chinese not in text[""]
    assert english in text[""] and english not in text["zh"]
    separator = re.compile(index["config"]["separator"])
    assert not separator.search("专") and not separator.search("a")  # a query would lose them
    assert [part for part in separator.split("用 moe.capacity 的专家容量") if part] == [
        *("用", "moe", "capacity", "的", "专", "家", "容", "量"),
    ]


@pytest.mark.parametrize(
    ("original", "translation", "expected"),
    [
        ("## One\n", "## 一\n", '<a id="one"></a>\n\n## 一\n'),
        ("## 910A\n", "## 910A\n", "## 910A\n"),  # has that name already
        ("## A b\n### C, d: `e`\n", "## 甲\n### 乙\n", '<a id="a-b"></a>\n\n## 甲\n<a id="c-d-e"></a>\n\n### 乙\n'),
        ("```\n## no\n```\n## Yes\n", "```\n## no\n```\n## 是\n", '```\n## no\n```\n<a id="yes"></a>\n\n## 是\n'),
        ("## One\n", "## 一\n## 二\n", '<a id="one"></a>\n\n## 一\n## 二\n'),
    ],
)
def test_headings_have_their_english_names_too(original, translation, expected):
    assert HOOKS["with_names_of"](original, translation) == expected


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("Does.\n\nArgs:\n    a: one. b: two.\n", ["a", "b"], "Does.\n\nArgs:\n    a: one.\n    b: two.\n"),
        (
            "Args:\n    a: one, as in x: y. b, c: both.",
            ["a", "b", "c"],
            "Args:\n    a: one, as in x: y.\n    b, c: both.",
        ),
        ("Args:\n    a: goes\n        on. b: two.", ["a", "b"], "Args:\n    a: goes\n        on.\n    b: two."),
        ("Args:\n    a: one.\n\nInputs: a: float.", ["a"], "Args:\n    a: one.\n\nInputs: a: float."),
        ("No arguments. a: b.", ["a"], "No arguments. a: b."),
        ("Args:\n    a: one.", [], "Args:\n    a: one."),
    ],
)
def test_one_argument_a_line(text, names, expected):
    assert HOOKS["one_argument_a_line"](text, names) == expected
