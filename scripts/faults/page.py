"""Tables between markers of docs/reliability.md: what commands measured, and only they write it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def write_table(name: str, header: str, rows: list[str], page: Path = PAGE) -> str:
    """Puts a Markdown table between `<!-- name -->` and `<!-- end of name -->` of the page; returns it."""
    columns = header.count("|") - 1
    table = "\n".join([header, "|" + "---|" * columns, *rows])
    text = page.read_text(encoding="utf-8")
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise SystemExit(f"{page}: no place for {name}; expected the lines {first} and {last}")
    page.write_text(f"{before}{first}\n{table}\n{last}{after}", encoding="utf-8")
    return table


def read_rows(name: str, page: Path = PAGE) -> list[str]:
    """The rows that such a table has now."""
    table = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0]
    return [line for line in table.splitlines() if line.startswith("| ")][1:]
