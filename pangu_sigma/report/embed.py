"""A figure as an element of a page: matplotlib's SVG in the page's own colours and font, without what a page has no use
for.
"""

import io
import re
from html import escape

from pangu_sigma.report import palette
from pangu_sigma.report.plot import drawn
from pangu_sigma.report.specs import FigureSpec

_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-f]{6})")
_NUMBERS = re.compile(r' (?:d|x|y|width|height)="[^"]*"')


def embedded(spec: FigureSpec) -> str:
    """The figure as `<svg>`: text is text, colours are the page's variables, nothing is named outside it.

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
