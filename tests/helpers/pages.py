"""The files of one's own that pages of the documentation teach, as they stand there."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
OWN = {"routers.md": "xmoe", "dispatchers.md": "half"}  # names by page


def python_blocks(page):
    """The Python of a page, block by block: first the file that it teaches."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def write_own(page, folder):
    """Writes the Python file that a page teaches into `folder`, under the name of its router or dispatcher."""
    code = python_blocks(page)[0]
    path = folder / f"{OWN[page]}.py"
    path.write_text(code, encoding="utf-8")
    return path
