"""What the documentation site needs beside its pages; mkdocs.yml names this file.

1. Links out of docs/, such as `../configs/quickstart.yaml`, which GitHub follows into the repository, lead to copies
   of those files on the site. They end in `.txt`, so that a browser shows them.
2. Pictures that are written as HTML, with a width, are found from every page: mkdocs leaves HTML as it is.
3. The line at the head of a page that leads to its other language is left out: the site has a menu for that.
4. Headings of a translated page can be led to by their English names as well, as pages without a translation do.
5. Docstrings that explain several arguments on one line are read as explaining each of them.
"""

import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "source"  # the site's folder of files from outside of docs/
name_of = partial(slugify(case="lower"), sep="-")  # as in mkdocs.yml
PICTURE = re.compile(r'(?<=<img src=")[^":]+(?=")')
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")
SECTION = re.compile(r"(?ms)^((?:Args|Attributes):\n)(.*?)(?=\n\n|\Z)")
HEADING = re.compile(r"(?ms)^```.*?^```|^##+ ([^\n]+)")  # or a block, in which a comment looks like one
OTHER_LANGUAGE = re.compile(r"(?m)^\[(?:English|中文)\]\([^)\s]+\)\n+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside of docs/ that pages link to."""
    added = set()
    for page in files.documentation_pages():
        for _, target, _ in LINK.findall(page.content_string):
            path = in_repository(page.src_uri, target)
            if (ROOT / path).is_file() and not path.startswith("docs/") and path not in added:
                added.add(path)
                files.append(File.generated(config, copy_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links to copies of files; a link to a folder of the repository becomes its text."""
    here = posixpath.dirname(page.file.src_uri)

    def link(found: "re.Match[str]") -> str:
        text, target, _ = found.groups()
        path = in_repository(page.file.src_uri, target)
        if path.startswith("docs/"):
            return found[0]
        return f"[{text}]({posixpath.relpath(copy_of(path), here)})" if (ROOT / path).is_file() else text

    def picture(found: "re.Match[str]") -> str:
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(here, found[0])))
        if file is None:
            raise PluginError(f"{page.file.src_uri}: no such picture: {found[0]}")
        return file.url_relative_to(page.file)

    markdown = OTHER_LANGUAGE.sub("", markdown, count=1)
    original = Path(config.docs_dir, page.file.src_uri.partition("/")[2])  # docs/ascend.md of zh/ascend.md
    if original.is_file():
        markdown = with_names_of(original.read_text(encoding="utf-8"), markdown)
    return PICTURE.sub(picture, LINK.sub(link, markdown))


def with_names_of(original: str, translation: str) -> str:
    """The translation, with the names of the original's headings, one after another, before its own."""
    names = iter([name_of(heading) for heading in HEADING.findall(original) if heading])

    def named(found: "re.Match[str]") -> str:
        if found[1] is None:
            return found[0]
        name = next(names, "")
        return found[0] if name in ("", name_of(found[1])) else f'<a id="{name}"></a>\n\n{found[0]}'

    return HEADING.sub(named, translation)


def on_page_context(context: Dict[str, Any], page: Page, config: MkDocsConfig, nav: Any) -> Dict[str, Any]:
    """Makes the links of the language menu relative, so that the site may stand in a folder of its host."""
    for language in getattr(config.extra, "alternate", []):  # the plug-in sets an attribute, not a key
        language["link"] = language["link"].lstrip("/") or "./"
    return context


def in_repository(page: str, target: str) -> str:
    """Where a page's link leads, as a path in the repository; `page` is its path below docs/."""
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))


def copy_of(path: str) -> str:
    """The name on the site of a file of the repository."""
    return f"{SOURCES}/{path}.txt"


class OneArgumentALine(griffe.Extension):
    """Begins a new line where a docstring explains a further argument on the same one: `tokens: T. top_k: k.`"""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        names = [parameter.name for parameter in func.parameters]
        of_class = func.parent.docstring if func.name == "__init__" and func.parent is not None else None
        for docstring in (func.docstring, of_class):
            if docstring is not None:
                docstring.value = one_argument_a_line(docstring.value, names)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        if cls.docstring is not None:
            cls.docstring.value = one_argument_a_line(cls.docstring.value, list(cls.attributes))


def one_argument_a_line(text: str, names: List[str]) -> str:
    """A docstring in which each of these arguments, or attributes, stands at the beginning of a line of its own."""
    known = "|".join(map(re.escape, names)) or "(?!)"
    further = re.compile(rf"(?<=[^\s,])\s+(?=(?:(?:{known}), )*(?:{known}): )")
    return SECTION.sub(lambda section: section[1] + further.sub("\n    ", section[2]), text)
