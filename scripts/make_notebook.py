#!/usr/bin/env python3
"""Makes a notebook of a page: its text, and a cell of each of its blocks that a reader would run.

usage: python scripts/make_notebook.py [PAGE NOTEBOOK]

Default: docs/tutorial.md, docs/tutorial.ipynb. A bash block becomes a cell that ends at the first command that fails; a
YAML block whose first line is a comment that names a file becomes a cell that writes it. All others stay text, and so
does a block behind a comment `<!-- not in the notebook: REASON -->`. A test makes it again and compares.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- not in the notebook: [^\n]* -->\n)?```(\w*)\n(.*?)```\n", re.DOTALL)
FILE = re.compile(r"# (\S+\.yaml)\n")
OTHER_LANGUAGE = re.compile(r"(?m)^\[中文\]\([^)\s]+\)\n\n")
# Commands name files of the repository, and a notebook's kernel starts in the folder of the notebook.
BEGIN = """\
import os
import sys
from pathlib import Path

here = Path.cwd()
os.chdir(next(folder for folder in (here, *here.parents) if (folder / "setup.py").exists()))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # this Python's pangu-sigma
"""


def cells(page: str) -> Iterator[Tuple[str, str]]:
    """("markdown" or "code", source), in the page's order."""
    text = ""
    end = 0
    for block in BLOCK.finditer(page):
        text += page[end : block.start()]
        end = block.end()
        source = cell_of(block[2], block[3]) if block[1] is None else ""
        if not source:
            text += block[0][len(block[1] or "") :]
            continue
        yield "markdown", text
        yield "code", source
        text = ""
    yield "markdown", text + page[end:]


def cell_of(language: str, content: str) -> str:
    """What a cell has to hold to do what this block says; empty if it says nothing that can be run."""
    if language == "bash":
        return f"%%bash -e\n{content}"
    file = FILE.match(content)
    return f"%%writefile {file[1]}\n{content}" if language == "yaml" and file else ""


def notebook(page: str) -> str:
    """The notebook's file, without outputs."""
    parts: List[Dict[str, Any]] = []
    (title, *rest) = cells(OTHER_LANGUAGE.sub("", page))
    for kind, source in (title, ("code", BEGIN), *rest):
        if source.strip():
            cell = {"cell_type": kind, "id": f"cell-{len(parts)}", "metadata": {}, "source": source.strip()}
            parts.append({**cell, "execution_count": None, "outputs": []} if kind == "code" else cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    root = {"cells": parts, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(root, ensure_ascii=False, indent=1) + "\n"


def main() -> int:
    arguments = sys.argv[1:] or ["docs/tutorial.md", "docs/tutorial.ipynb"]
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    page, target = (ROOT / argument for argument in arguments)
    target.write_text(notebook(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
