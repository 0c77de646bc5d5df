"""What a figure shows, as data: drawn by `plot`, written as a table by `figure_files`.

Whatever has a range over seeds has it only where there are several; a whisker or band is drawn for nothing else.
"""

import math
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple, Union

Table = Tuple[List[str], List[List[Union[str, float]]]]  # names of the columns, rows


@dataclass(frozen=True)
class Curve:
    """Points in order of x.

    Attributes:
        label: what the legend calls it.
        number: of the variant, which decides colour, marker and pattern.
        x, y: the points.
        low, high: range over seeds of each point; empty where there is one seed.
    """

    label: str
    number: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Curves:
    """Curves over common axes.

    Attributes:
        curves: what is drawn.
        x_label, y_label: of the axes, with units.
        logarithmic: y may be, where all that shows is positive and spans more than a factor of 3.
        from_zero: the axis of y begins at 0.
        top: what lies above it is cut off.
        measured: every point was measured, and has a marker where there is room; False: points are means over steps.
        joined: points are joined by a line.
        hues: each curve is a variant, and has its colour; False: they are of one variant, and differ in pattern.
    """

    curves: Sequence[Curve]
    x_label: str
    y_label: str
    logarithmic: bool = True
    from_zero: bool = False
    top: float = math.inf
    measured: bool = True
    joined: bool = True
    hues: bool = True

    def table(self) -> Table:
        """A row a point."""
        header = ["variant" if self.hues else "curve", self.x_label, self.y_label, "lowest seed", "highest seed"]
        rows: List[List[Union[str, float]]] = []
        for curve in self.curves:
            for place, (x, y) in enumerate(zip(curve.x, curve.y)):
                ends = [curve.low[place], curve.high[place]] if curve.low else ["", ""]
                rows.append([curve.label, x, y, *ends])
        return header, rows


@dataclass(frozen=True)
class Panels:
    """Curves of several variants, one below the other, over one axis of x and under one legend."""

    panels: Sequence[Tuple[str, Curves]]

    def table(self) -> Table:
        """A row a point, beginning with its panel's name."""
        header = ["variant", *self.panels[0][1].table()[0]]
        return header, [[name, *row] for name, curves in self.panels for row in curves.table()[1]]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar, of as many pieces as values.

    Attributes:
        label: stands above it.
        values: of its pieces.
        text: stands at its end.
        number: of its variant, which colours a bar of one piece.
        low, high: range over seeds of the whole; None where there is one seed.
    """

    label: str
    values: Sequence[float]
    text: str
    number: int = 0
    low: Optional[float] = None
    high: Optional[float] = None


@dataclass(frozen=True)
class Bars:
    """Bars from a common zero.

    Attributes:
        bars: from the top.
        x_label: of the axis, with its unit.
        pieces: names of the pieces of every bar.
        tones: `time` or `bytes`: whose colours the pieces have, if they are several.
    """

    bars: Sequence[Bar]
    x_label: str
    pieces: Sequence[str] = ()
    tones: str = "time"

    def table(self) -> Table:
        """A row a bar."""
        header = ["bar", *([f"{piece}: {self.x_label}" for piece in self.pieces] or [self.x_label])]
        ranges = any(bar.low is not None for bar in self.bars)
        rows: List[List[Union[str, float]]] = []
        for bar in self.bars:
            ends = ["" if end is None else end for end in (bar.low, bar.high)]
            rows.append([bar.label, *bar.values, *(ends if ranges else [])])
        return header + (["lowest seed", "highest seed"] if ranges else []), rows


@dataclass(frozen=True)
class HeatMap:
    """Of one variant: `cells[row][column]`, and the steps between which each column lies (one more than columns)."""

    label: str
    cells: Sequence[Sequence[float]]
    edges: Sequence[float]


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps one below the other with one colour bar; 1 is the middle of its colours, and `top` their end."""

    maps: Sequence[HeatMap]
    x_label: str
    y_label: str
    colour_label: str
    top: float

    def table(self) -> Table:
        """A row a cell."""
        header = ["variant", self.y_label, f"{self.x_label}, from", f"{self.x_label}, to", self.colour_label]
        rows: List[List[Union[str, float]]] = []
        for one in self.maps:
            for number, row in enumerate(one.cells):
                rows += [[one.label, number, a, b, value] for a, b, value in zip(one.edges, one.edges[1:], row)]
        return header, rows


Content = Union[Curves, Panels, Bars, HeatMaps]


@dataclass(frozen=True)
class FigureSpec:
    """A figure: `content` is drawn under its title and a sentence on what it shows; None: `missing` says why not.
    `name` is that of its files.
    """

    name: str
    title: str
    sentence: str = ""
    content: Optional[Content] = None
    missing: str = ""
