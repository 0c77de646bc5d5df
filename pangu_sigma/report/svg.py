"""Plain figures as inline SVG: horizontal bars, curves, heat maps. Colours come from the page (`--c0`, `--c1`, ...),
light or dark.

All are drawn 360 units wide with text of 12 units, so that they can be read at the width of a phone. Names stand above
their bars or in a legend outside the drawing, where they cannot run into each other however long they are.
"""

import math
import zlib
from dataclasses import dataclass
from html import escape
from typing import List, Optional, Sequence, Tuple

WIDTH = 360.0
CHARACTER = 7.2  # units, of the widest digits at 12 units
LABEL = 44  # characters of a label that fit into the width, some of them wide
COLOURS = 8  # the last is grey
GREY = COLOURS - 1
MOST_TICKS = 7
_DASHES = ("", "6 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Segment:
    """A piece of a bar: its length, its colour's number, what it says when pointed at."""

    value: float
    colour: int
    title: str


@dataclass(frozen=True)
class Bar:
    """`low` and `high`, if given, are the ends of a whisker: the range over seeds."""

    label: str
    segments: Sequence[Segment]
    text: str
    low: Optional[float] = None
    high: Optional[float] = None


@dataclass(frozen=True)
class Curve:
    """Points in order of x; `low` and `high` bound a band around them. A single point is a dot, its range a whisker."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def bars(rows: Sequence[Bar], label: str) -> str:
    """One bar a row under its name, from a common zero; a whisker over its end; its text at the right.

    Args:
        rows: the bars, from the top.
        label: what the drawing is called, for screen readers.
    """
    room = WIDTH - 8 - CHARACTER * max(len(row.text) for row in rows)
    longest = max([max(sum(s.value for s in row.segments), row.high or 0.0) for row in rows]) or 1.0
    parts = []
    for number, row in enumerate(rows):
        top = 42.0 * number
        # Of a label that is wider than the drawing the end is shown, where names of folders differ.
        label_shown = row.label if len(row.label) <= LABEL else "\u2026" + row.label[1 - LABEL :]
        parts.append(_text(0, top + 12, label_shown))
        left = 0.0
        for segment in row.segments:
            width = room * segment.value / longest
            parts.append(
                f'<rect x="{left:.1f}" y="{top + 18:.1f}" width="{width:.1f}" height="14" '
                f'fill="var(--c{segment.colour % COLOURS})"><title>{escape(segment.title)}</title></rect>'
            )
            left += width
        if row.low is not None and row.high is not None:
            low, high = room * row.low / longest, room * row.high / longest
            ends = "".join(f"M{x:.1f} {top + 20:.1f}V{top + 30:.1f}" for x in (low, high))
            parts.append(f'<path class="whisker" d="M{low:.1f} {top + 25:.1f}H{high:.1f}{ends}"/>')
            left = max(left, high)
        parts.append(_text(left + 6, top + 29, row.text))
    return _svg(42.0 * len(rows), "".join(parts), label)


def curves(series: Sequence[Curve], x_title: str, y_title: str, label: str, top: float = math.inf) -> str:
    """Curves over common axes; y is logarithmic where all that shows is positive and its ratio exceeds 3.

    Args:
        series: the curves.
        x_title, y_title: of the axes.
        label: what the drawing is called, for screen readers.
        top: what lies above this value is cut off.
    """
    xs = [value for curve in series for value in curve.x]
    ys = [min(value, top) for curve in series for value in (*curve.y, *curve.low, *curve.high)]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 3 and len(_log_ticks(min(ys), max(ys))) > 1
    y_ticks = _log_ticks(min(ys), max(ys)) if logarithmic else ticks(*_widened(min(ys), max(ys)))
    x_low, x_high = _widened(min(xs), max(xs), keep_zero=True)
    x_ticks = ticks(x_low, x_high)
    texts = [compact(tick) for tick in y_ticks]
    frame = _Frame(
        left=10 + CHARACTER * max(map(len, texts)),
        top=24.0,
        bottom=216.0,
        x=(x_low, x_high),
        y=_widened(min(ys), max(ys)) if not logarithmic else (min(ys) * 0.97, max(ys) * 1.03),
        logarithmic=logarithmic,
    )
    parts = [_text(0, 12, y_title, muted=True)]
    for tick, text in zip(y_ticks, texts):
        y = frame.down(tick)
        parts.append(f'<line class="grid" x1="{frame.left:.1f}" x2="{WIDTH:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(frame.left - 5, y + 4, text, "end", muted=True))
    for tick in x_ticks:
        x = frame.across(tick)  # numbers at the ends of the axis stay inside the drawing
        anchor = "start" if x < frame.left + 12 else "end" if x > WIDTH - 20 else "middle"
        parts.append(_text(x, 233, compact(tick), anchor, muted=True))
    parts.append(_text(WIDTH, 250, x_title, "end", muted=True))
    drawn = "".join(_curve(frame, curve) for curve in series)
    if math.isfinite(top):  # show the curves as far as they lie below the frame's top
        name = f"frame{zlib.crc32(label.encode()):08x}"
        inside = f'<rect x="0" y="{frame.top - 6:.1f}" width="{WIDTH:.0f}" height="{frame.bottom:.1f}"/>'
        drawn = f'<clipPath id="{name}">{inside}</clipPath><g clip-path="url(#{name})">{drawn}</g>'
    parts.append(drawn)
    return _svg(256.0, "".join(parts), label)


def heat_map(cells: Sequence[Sequence[float]], x_ends: Tuple[str, str], label: str) -> str:
    """A table of strengths as tones of one colour; rows are numbered from the top.

    Args:
        cells: `cells[row][column]` in [0, 1].
        x_ends: what the first and the last column are called.
        label: what the drawing is called, for screen readers.
    """
    left, height = 8 + CHARACTER * len(str(len(cells) - 1)), max(3.0, min(12.0, 200.0 / len(cells)))
    width = (WIDTH - left) / len(cells[0])
    parts = []
    for number, row in enumerate(cells):
        start = 0
        for column in range(1, len(row) + 1):  # neighbours of equal strength are one rectangle
            if column == len(row) or round(row[column], 2) != round(row[start], 2):
                x, end = (round(left + edge * width, 1) for edge in (start, column))
                parts.append(
                    f'<rect x="{x}" y="{number * height:.1f}" width="{end - x:.1f}" '
                    f'height="{height:.1f}" shape-rendering="crispEdges" fill="var(--c0)" '
                    f'fill-opacity="{min(row[start], 1.0):.2f}"/>'
                )
                start = column
    bottom = height * len(cells)
    parts.append(f'<rect class="frame" x="{left:.1f}" y="0" width="{WIDTH - left:.1f}" height="{bottom:.1f}"/>')
    parts += [_text(left - 5, max(10.0, 0.5 * height + 4), "0", "end", muted=True)]
    parts += [_text(left - 5, bottom - 1, str(len(cells) - 1), "end", muted=True)] if bottom > 26 else []
    parts += [_text(left, bottom + 15, x_ends[0], muted=True), _text(WIDTH, bottom + 15, x_ends[1], "end", muted=True)]
    return _svg(bottom + 20, "".join(parts), label)


def legend(entries: Sequence[Tuple[str, int]], mark: str = "bar") -> str:
    """Names next to their colours, as HTML that wraps.

    Args:
        entries: names with their colours' numbers.
        mark: `bar`, `curve` or `dot`, as they are drawn.
    """
    items = []
    for name, colour in entries:
        bar = f'<path d="M0 5H24" stroke="var(--c{colour % COLOURS})" stroke-width="10"/>'
        sample = {
            "bar": bar,
            "curve": f'<path d="M0 5H24" fill="none" {_stroke(colour)}/>',
            "dot": _dot(12, 5, colour),
        }[mark]
        items.append(f'<li><svg viewBox="0 0 24 10" aria-hidden="true">{sample}</svg>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


# ---- numbers


def ticks(low: float, high: float, count: int = 4) -> List[float]:
    """About `count` round numbers in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> List[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**power for power in powers for factor in ((1,) if len(powers) > 4 else (1, 2, 5))]
    inside = [tick for tick in every if low * 0.97 <= tick <= high * 1.03]
    return inside[:: -(-len(inside) // MOST_TICKS) or 1]


def compact(value: float) -> str:
    """A tick's number: at most 3 digits beyond what its size needs, no trailing zeros."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.2g}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _widened(low: float, high: float, keep_zero: bool = False) -> Tuple[float, float]:
    """A range with some air around it, also where it is a single point."""
    air = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return (low if keep_zero and high > low else low - air), (high if keep_zero and high > low else high + air)


# ---- pieces


@dataclass(frozen=True)
class _Frame:
    left: float
    top: float
    bottom: float
    x: Tuple[float, float]
    y: Tuple[float, float]
    logarithmic: bool

    def across(self, value: float) -> float:
        return self.left + 6 + (WIDTH - self.left - 12) * (value - self.x[0]) / (self.x[1] - self.x[0])

    def down(self, value: float) -> float:
        low, high, value = (math.log(v) for v in (*self.y, value)) if self.logarithmic else (*self.y, value)
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)

    def path(self, x: Sequence[float], y: Sequence[float]) -> str:
        return "L".join(f"{self.across(a):.1f} {self.down(b):.1f}" for a, b in zip(x, y))


def _curve(frame: _Frame, curve: Curve) -> str:
    parts = []
    if curve.low and curve.high and len(curve.x) > 1:
        band = f"M{frame.path(curve.x, curve.high)}L{frame.path(curve.x[::-1], curve.low[::-1])}Z"
        parts.append(f'<path d="{band}" fill="var(--c{curve.colour % COLOURS})" fill-opacity="0.15"/>')
    if len(curve.x) > 1:
        parts.append(
            f'<path d="M{frame.path(curve.x, curve.y)}" fill="none" {_stroke(curve.colour)}>'
            f"<title>{escape(curve.label)}</title></path>"
        )
        return "".join(parts)
    across, x, y = frame.across(curve.x[0]), curve.x[0], curve.y[0]
    if curve.low and curve.high:
        low, high = frame.down(curve.low[0]), frame.down(curve.high[0])
        ends = "".join(f"M{across - 5:.1f} {end:.1f}H{across + 5:.1f}" for end in (low, high))
        parts.append(f'<path class="whisker" d="M{across:.1f} {low:.1f}V{high:.1f}{ends}"/>')
    parts.append(_dot(across, frame.down(y), curve.colour, f"{curve.label}: {compact(x)}, {compact(y)}"))
    return "".join(parts)


def _dot(x: float, y: float, colour: int, title: str = "") -> str:
    """Hollow where the colour is used for the second time."""
    fill = "var(--card)" if colour // COLOURS % 2 else f"var(--c{colour % COLOURS})"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="var(--c{colour % COLOURS})" stroke-width="2">'
        f"<title>{escape(title)}</title></circle>"
    )


def _stroke(colour: int) -> str:
    """A colour's number is also its dash pattern: curves can be told apart without colour, and where a colour comes
    twice.
    """
    dash = _DASHES[(colour + colour // COLOURS) % len(_DASHES)]
    return f'stroke="var(--c{colour % COLOURS})" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _text(x: float, y: float, text: str, anchor: str = "start", muted: bool = False) -> str:
    style = ("" if anchor == "start" else f' text-anchor="{anchor}"') + (' class="muted"' if muted else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(text)}</text>'


def _svg(height: float, content: str, label: str) -> str:
    name = escape(label, quote=True)
    return f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{name}">{content}</svg>'
