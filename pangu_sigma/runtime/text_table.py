"""The one layout of tables and long lines in the terminal: columns as wide as what they hold, at most 79 columns."""

import textwrap
import unicodedata
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Iterable, List, Optional, Sequence

WIDTH = 79
RULE = None  # in place of a row: a line across the table
_GAP = 2  # blanks between columns, where there is room; else 1
_NARROWEST = 12  # of a column whose text is wrapped
_FILLER = "\0"  # stands before a wide character while lines are broken

Row = Optional[Sequence[str]]


@dataclass(frozen=True)
class TableColumn:
    """What is known of a column before its rows are.

    Attributes:
        title: what stands above it; a line break in it makes further lines.
        align: "<" for words, ">" for numbers.
        wraps: whether long texts continue on further lines where the table would be too wide.
        least: width that it has at least, for tables whose rows are printed as they come.
    """

    title: str = ""
    align: str = ">"
    wraps: bool = False
    least: int = 0


def text_table(columns: Sequence[TableColumn], rows: Iterable[Row], indent: int = 0, rule: bool = True) -> List[str]:
    """The lines of a table: titles, a rule, and the rows.

    Where that is wider than 79 columns, the gaps become one blank, and then the columns that wrap share what is left.
    What does not wrap is never cut: a name of a tensor can be copied, and found by `grep`.

    Args:
        columns: of the table. Without any title there is no head.
        rows: a text a column each; or `RULE`.
        indent: blanks before every line.
        rule: whether a rule stands below the titles.
    """
    rows = list(rows)
    titles = [column.title for column in columns]
    head: List[Row] = [titles, *([RULE] * rule)] if any(titles) else []
    widths = [
        max([column.least, *(display_width(line) for row in [titles, *rows] if row for line in row[place].split("\n"))])
        for place, column in enumerate(columns)
    ]
    room = WIDTH - indent
    gap = _GAP if _total(widths, _GAP) <= room else 1
    while _total(widths, gap) > room:  # the widest of the columns that wrap becomes narrower
        widest = max((place for place, column in enumerate(columns) if column.wraps), key=widths.__getitem__, default=0)
        if not columns[widest].wraps or widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    lines: List[str] = []
    for row in [*head, *rows]:
        if row is None:
            lines.append("-" * min(_total(widths, gap), room))
        else:
            lines += _row_lines(columns, row, widths, " " * gap, bottom=row is titles)
    return [" " * indent + line for line in lines]


def display_width(text: str) -> int:
    """Columns that a terminal takes for `text`: two for a Chinese character, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def wrapped(text: str, width: int = WIDTH, **options: Any) -> List[str]:
    """The lines of `textwrap.wrap`, which counts characters, for a terminal, where a Chinese one takes two columns.

    Args:
        text: what is to be broken into lines.
        width: most columns of a line.
        options: further ones of `textwrap.wrap`.
    """
    filled = "".join(_FILLER * (display_width(character) - 1) + character for character in text)
    if filled != text:
        width -= 1  # a line may end between a filler and its character
    return [line.replace(_FILLER, "") for line in textwrap.wrap(filled, width, **options)]


def pad(text: str, width: int, align: str = "<") -> str:
    """`text` with blanks to `width` columns of a terminal, behind it (align "<") or before it (">")."""
    blanks = " " * (width - display_width(text))
    return text + blanks if align == "<" else blanks + text


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _row_lines(
    columns: Sequence[TableColumn], row: Sequence[str], widths: Sequence[int], gap: str, bottom: bool
) -> List[str]:
    """A row as lines; the shorter ones of its texts stand at their top, or of titles at their `bottom`."""
    cells = [
        [part for line in text.split("\n") for part in (_wrapped(line, width) if column.wraps else [line])]
        for column, text, width in zip(columns, row, widths)
    ]
    if bottom:
        height = max(map(len, cells))
        cells = [[""] * (height - len(cell)) + cell for cell in cells]
    return [
        gap.join(pad(part, width, column.align) for column, part, width in zip(columns, parts, widths)).rstrip()
        for parts in zip_longest(*cells, fillvalue="")
    ]


def _wrapped(text: str, width: int) -> List[str]:
    return [text] if display_width(text) <= width else wrapped(text, width) or [""]
