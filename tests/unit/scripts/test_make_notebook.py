"""The notebook is the tutorial: made of it, with a cell of each block that a reader runs."""

import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
NOTEBOOK = (REPOSITORY / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
make_notebook = runpy.run_path(str(REPOSITORY / "scripts" / "make_notebook.py"))


def code_cells(page):
    return [source for kind, source in make_notebook["cells"](page) if kind == "code"]


def test_the_notebook_is_made_of_the_tutorial():
    assert make_notebook["notebook"](PAGE) == NOTEBOOK, "run python scripts/make_notebook.py"


def test_it_is_a_notebook_without_outputs():
    found = nbformat.reads(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    assert not any(cell.get("outputs") for cell in found.cells)


def test_what_is_left_out_is_left_out_for_a_reason():
    """All bash blocks of the tutorial are cells, but for those that do not end, or need another machine."""
    cells = "\n".join("".join(cell["source"]) for cell in json.loads(NOTEBOOK)["cells"] if cell["cell_type"] == "code")
    missing = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if block.strip() not in cells]
    assert len(missing) == 2 and "--follow" in missing[0] and "--nodes-file" in missing[1]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("# T\n\n```bash\ntrue\n```\nend\n", ["%%bash -e\ntrue\n"]),
        ("# T\n```yaml\n# a/b.yaml\nx: 1\n```\n", ["%%writefile a/b.yaml\n# a/b.yaml\nx: 1\n"]),
        ("# T\n```yaml\nx: 1\n```\n", []),  # an example, of no file
        ("# T\n```\noutput\n```\n```python\nx = 1\n```\n", []),
        ("# T\n<!-- not in the notebook: waits -->\n```bash\nsleep\n```\n```bash\ntrue\n```\n", ["%%bash -e\ntrue\n"]),
    ],
)
def test_cells(page, expected):
    assert code_cells(page) == expected


def test_text_is_kept():
    """Whole and in order, without the comments that are for the notebook alone."""
    page = "# T\none\n```bash\ntrue\n```\ntwo\n<!-- not in the notebook: waits -->\n```bash\nsleep\n```\nthree\n"
    text = [source for kind, source in make_notebook["cells"](page) if kind == "markdown"]
    assert text == ["# T\none\n", "two\n```bash\nsleep\n```\nthree\n"]
