"""The report's page: its style, its skeleton, its tables and drawings. Nothing is loaded from anywhere."""

import io
import re
from html import escape
from typing import Optional, Sequence

from pangu_sigma.report import palette
from pangu_sigma.report.plot import drawn
from pangu_sigma.report.specs import FigureSpec

_COLOURS = f"""
:root {{ color-scheme: light dark; {palette.variables(dark=False)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {palette.variables(dark=True)} }} }}
"""
_RULES = """* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 32px 0 8px; } h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 6px 0; max-width: 75ch; overflow-wrap: anywhere; } figcaption, .note { color: var(--muted); } .note {
  font-size: 0.9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  min-width: 0; }
figcaption { font-size: 0.9rem; margin: 0 0 10px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; max-width: 460px; overflow: visible; stroke-linejoin: round; }
svg text { font-family: inherit; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; background: linear-gradient(to left, var(--card) 8px, transparent 32px) right / 32px 100%
  no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / 16px 100% no-repeat scroll, var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { padding: 6px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tbody th { font-weight: 500; } thead th { font-weight: 600; min-width: 6.7rem; white-space: normal;
  overflow-wrap: anywhere; }
th:first-child { position: sticky; left: 0; background: var(--card); text-align: left; white-space: normal;
  overflow-wrap: anywhere;
  min-width: 8.5rem; max-width: 13rem; }
.words td, .words thead th { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
tbody tr:last-child > * { border-bottom: 0; } td small { display: block; color: var(--muted); font-size: 0.8rem; }
code { font-size: 0.9em; overflow-wrap: anywhere; white-space: normal; }
@media (max-width: 520px) { th, td { padding: 6px 8px; } th:first-child { min-width: 6.5rem; max-width: 8rem; }
  .words td, .words thead th { min-width: 7rem; } }
"""


_GENERATOR = '<meta name="generator" content="pangu-sigma">'
MARKERS = (_GENERATOR.encode(),)  # what tells our pages from others


def page(title: str, body: str, refresh_s: Optional[int] = None) -> str:
    """A whole document as HTML.

    Args:
        title: the heading, and the name of the browser's tab.
        body: HTML.
        refresh_s: seconds after which the browser loads it again; None: never.
    """
    again = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">\n'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_GENERATOR}\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{again}<title>{escape(title)}</title>\n'
        f"<style>{_COLOURS}{_RULES}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def figure(title: str, sentence: str, drawing: str) -> str:
    """A `drawing` (HTML) under its `title` and a `sentence` on what it shows."""
    return f"<figure>\n<h3>{escape(title)}</h3>\n<figcaption>{escape(sentence)}</figcaption>\n{drawing}\n</figure>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table as HTML.

    Args:
        header: names of the columns.
        rows: cells as text; the first names the row. A cell's second line, after a newline, is set small.
        kind: what the cells hold: `numbers` or `words`.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    for name, *cells in rows:
        line = f'<tr><th scope="row">{escape(name)}</th>'
        for cell in cells:
            first, _, second = cell.partition("\n")
            line += f"<td>{escape(first)}" + (f"<small>{escape(second)}</small>" if second else "") + "</td>"
        lines.append(line + "</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="wide {kind}" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>'
        "</table></div>"
    )


_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-f]{6})")
_NUMBERS = re.compile(r' (?:d|x|y|width|height)="[^"]*"')


def embedded(spec: FigureSpec) -> str:
    """The figure as `<svg>`, without what a page has no use for: text is text, colours are the page's variables, and
    nothing is named outside it.

    Args:
        spec: with a content.
    """
    assert spec.content is not None
    text = io.StringIO()
    # Names of what a drawing refers to inside itself follow from the salt: those of two figures of a page differ.
    with drawn(spec.content, {"svg.fonttype": "none", "svg.hashsalt": spec.name}) as figure:
        width, height = (72 * inches for inches in figure.get_size_inches())
        figure.savefig(text, format="svg", metadata=_NO_METADATA, transparent=True)
    inner = re.sub(r"^.*?<svg [^>]*>|</svg>\s*$", "", text.getvalue(), flags=re.DOTALL)
    inner = re.sub(r"<style type=\"text/css\">.*?</style>|<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'<g id="[^"]*"', "<g", inner)
    # The page's font: those that matplotlib names the reader may not have.
    inner = re.sub(r"font: [^;\"]*?([\d.]+)px [^;\"]*", r"font-size: \1px", inner)
    inner = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\"", "", inner)
    inner = _COLOUR.sub(lambda found: f"{found[1]}: {palette.VARIABLE.get(found[2], found[2])}", inner)
    inner = _NUMBERS.sub(lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), inner)  # hundredths of a point
    inner = re.sub(r"\s*\n\s*", "\n", inner)
    name = escape(spec.title, quote=True)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}">{inner}</svg>'
