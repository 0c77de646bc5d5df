"""Figures drawn by matplotlib, as wide as a column of a paper, with text that can be read there and on a phone.

matplotlib (extra `plots`) is imported when a figure is drawn and not before. pyplot and its state are not used; what
matplotlib keeps for the whole process, its settings, is set under a lock and put back, so that threads may draw and a
notebook's own settings neither matter nor change. The same figure is the same bytes each time.
"""

import importlib.util
import math
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from pangu_sigma.report import palette
from pangu_sigma.report.labels import FONT_PT, compact, fonts_for, log_ticks, shortened, text_width
from pangu_sigma.report.specs import Bar, Bars, Content, Curve, Curves, HeatMaps, Panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install matplotlib"
WIDTH_IN = 3.33  # of a column of a paper in two columns
_WIDTH_PT = 72 * WIDTH_IN
# What is left of the width for a label: above a bar, behind its sample in a legend, over axes with their labels.
_BAR_ROOM_PT, _LEGEND_ROOM_PT, _TITLE_ROOM_PT = _WIDTH_PT - 10, _WIDTH_PT - 32, _WIDTH_PT - 50
FEW, SOME = 25, 50  # points of a curve that have large markers, and small ones
_LEGEND_ROW_IN = 0.165
_MARKERS = "os^DvPX"
_DASHES: Tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_LOCK = threading.RLock()
_SETTINGS: Any = {
    "font.size": FONT_PT,
    "axes.labelsize": FONT_PT,
    "axes.titlesize": FONT_PT,
    "xtick.labelsize": FONT_PT,
    "ytick.labelsize": FONT_PT,
    "legend.fontsize": FONT_PT,
    "axes.linewidth": 0.7,
    "axes.edgecolor": palette.light(palette.MUTED),
    "axes.labelcolor": palette.light(palette.INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "xtick.color": palette.light(palette.MUTED),
    "ytick.color": palette.light(palette.MUTED),
    "text.color": palette.light(palette.INK),
    "grid.color": palette.light(palette.LINE),
    "grid.linewidth": 0.6,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.borderaxespad": 0.1,
    "legend.borderpad": 0.1,
    "legend.labelspacing": 0.25,
    "legend.columnspacing": 1.0,
    "legend.handlelength": 2.2,
    "legend.handletextpad": 0.5,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}


def can_draw() -> bool:
    """Whether matplotlib is there. It is not imported."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # something else has taken its name
        return False


@contextmanager
def drawn(content: Content, settings: Mapping[str, Any]) -> Iterator["Figure"]:
    """The figure, as long as the settings hold with which it must be saved, too.

    Args:
        content: what it shows.
        settings: further ones of matplotlib, such as `svg.fonttype`.
    """
    with _LOCK:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(), warnings.catch_warnings():
            # In a page the reader's fonts draw the text; of files `write_figures` warns, once.
            warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
            matplotlib.rcdefaults()
            fonts = fonts_for(texts(content)).families
            # Type 42, which journals ask for, is for TrueType, as matplotlib's own font; others may be of another kind.
            own = {"font.family": list(fonts), "pdf.fonttype": 42 if len(fonts) == 1 else 3}
            chosen: Any = {**own, **_SETTINGS, **settings}
            matplotlib.rcParams.update(chosen)
            figure = Figure(figsize=(WIDTH_IN, 1.0), layout="constrained")
            kinds: Dict[type, Any] = {Curves: _curves, Panels: _panels, Bars: _bars, HeatMaps: _heat_maps}
            kinds[type(content)](figure, content)
            yield figure


def texts(content: Content) -> List[str]:
    """The names in a figure that are the user's own: of variants, of runs."""
    if isinstance(content, Panels):
        return [text for name, curves in content.panels for text in (name, *texts(curves))]
    if isinstance(content, Curves):
        return [curve.label for curve in content.curves]
    return [one.label for one in (content.bars if isinstance(content, Bars) else content.maps)]


# ---- kinds of figures


def _curves(figure: "Figure", content: Curves) -> None:
    axes = figure.subplots()
    _draw_curves(axes, content)
    axes.set(xlabel=content.x_label, ylabel=content.y_label)
    handles, labels = axes.get_legend_handles_labels()
    figure.set_figheight(2.15 + _legend(figure, handles, labels))


def _panels(figure: "Figure", content: Panels) -> None:
    several = figure.subplots(len(content.panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, curves) in zip(several, content.panels):
        _draw_curves(axes, curves)
        axes.set_title(shortened(name, _TITLE_ROOM_PT), loc="left", pad=4)
        axes.set_ylabel(curves.y_label)
    several[-1].set_xlabel(content.panels[0][1].x_label)
    found = {label: line for axes in several for line, label in zip(*axes.get_legend_handles_labels())}
    figure.set_figheight(0.4 + 0.95 * len(content.panels) + _legend(figure, list(found.values()), list(found)))


def _bars(figure: "Figure", content: Bars) -> None:
    axes, pieces = figure.subplots(), len(content.pieces) or 1
    colours = palette.tones(content.tones, pieces) if pieces > 1 else []
    # The axis is so long that behind each bar there is room for its text.
    shares = [1 - (text_width(bar.text) + 8) / (_WIDTH_PT - 8) for bar in content.bars]
    longest = max(max(sum(bar.values), bar.high or 0.0) / share for bar, share in zip(content.bars, shares)) or 1.0
    for place, bar in enumerate(content.bars):
        _draw_bar(axes, place, bar, colours)
    axes.set(xlim=(0, longest), ylim=(len(content.bars) - 0.6, -0.85), xlabel=content.x_label, yticks=[])
    axes.xaxis.set_major_locator(_linear(4))
    axes.xaxis.set_major_formatter(_compact)
    there = [place for place in range(len(colours)) if any(bar.values[place] for bar in content.bars)]
    handles = [axes.barh(0, 0, color=colours[place], edgecolor=palette.light(palette.MUTED), lw=0.4) for place in there]
    legend = _legend(figure, handles, [content.pieces[place] for place in there])
    figure.set_figheight(0.45 + 0.42 * len(content.bars) + legend)


def _draw_bar(axes: "Axes", place: int, bar: Bar, colours: Sequence[str]) -> None:
    """With its whisker, its name above it and its text behind it. `colours`: of its pieces; none: its variant's."""
    left = 0.0
    edge: Dict[str, Any] = {"edgecolor": palette.light(palette.MUTED), "linewidth": 0.4} if colours else {}
    for piece, value in enumerate(bar.values):
        colour = colours[piece] if colours else palette.hue(bar.number)
        axes.barh(place, value, 0.42, left, color=colour, **edge)
        left += value
    if bar.low is not None and bar.high is not None:
        ends = ([left - bar.low], [bar.high - left])
        axes.errorbar(left, place, xerr=ends, fmt="none", ecolor=palette.light(palette.INK), capsize=3, lw=1)
        left = max(left, bar.high)
    label = shortened(bar.label, _BAR_ROOM_PT)
    for text in (
        axes.annotate(label, (0, place - 0.21), (1, 2), textcoords="offset points", va="bottom"),
        axes.annotate(bar.text, (left, place), (4, 0), textcoords="offset points", va="center"),
    ):
        text.set_in_layout(False)


def _heat_maps(figure: "Figure", content: HeatMaps) -> None:
    from matplotlib.colors import TwoSlopeNorm

    heights = [min(1.8, max(0.42, 0.07 * len(one.cells))) for one in content.maps]
    ratios = {"height_ratios": heights}
    several = figure.subplots(len(content.maps), 1, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    norm = TwoSlopeNorm(1.0, 0.0, content.top)
    for axes, one in zip(several, content.maps):
        last = len(one.cells) - 1
        image = axes.imshow(
            one.cells,
            norm=norm,
            cmap="PuOr_r",
            aspect="auto",
            interpolation="none",
            extent=(one.edges[0], one.edges[-1], last + 0.5, -0.5),
        )
        axes.set_title(shortened(one.label, _TITLE_ROOM_PT), loc="left", pad=4)
        axes.set(ylabel=content.y_label, yticks=[0, last] if last else [0])
    several[-1].set_xlabel(content.x_label)
    several[-1].xaxis.set_major_locator(_linear(5))
    over = any(value > content.top for one in content.maps for row in one.cells for value in row)
    bar = figure.colorbar(
        image, ax=list(several), location="top", label=content.colour_label, extend="max" if over else "neither"
    )
    bar.set_ticks([0, 0.5, 1, *range(2, int(content.top) + 1)])
    bar.ax.xaxis.set_major_formatter(_compact)
    figure.set_figheight(0.95 + sum(heights) + 0.24 * len(heights))


# ---- their pieces


def _draw_curves(axes: "Axes", content: Curves) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.grid(True)
    for curve in content.curves:
        _draw_curve(axes, content, curve)
    shown = [min(y, content.top) for curve in content.curves for y in (*curve.y, *curve.low, *curve.high)]
    low, high = min(shown), max(shown)
    if content.logarithmic and low > 0 and high / low > 3:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.06, high * 1.06)
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(0.0 if content.from_zero and low >= 0 else low - air, high + air)
        axes.yaxis.set_major_locator(_linear(5))
    axes.yaxis.set_major_formatter(_compact)
    if not content.joined:
        axes.margins(x=0.12)
    whole = all(float(x).is_integer() for curve in content.curves for x in curve.x)
    axes.xaxis.set_major_locator(_linear(5, whole))
    axes.xaxis.set_major_formatter(_compact)


def _draw_curve(axes: "Axes", content: Curves, curve: Curve) -> None:
    colour = palette.hue(curve.number) if content.hues else palette.light(palette.INK)
    points = len(curve.x)
    size = (4.0 if points <= FEW else 2.0 if points <= SOME else 0.0) if content.measured or points == 1 else 0.0
    marker = _MARKERS[curve.number % len(_MARKERS)] if size else ""
    # Where there are markers, these tell curves apart without their colour; elsewhere the pattern does.
    pattern = _DASHES[(curve.number // palette.HUES if marker else curve.number) % len(_DASHES)]
    style: Dict[str, Any] = {"color": colour, "marker": marker, "ms": size}
    style["label"] = shortened(curve.label, _LEGEND_ROOM_PT)
    if curve.number // palette.HUES % 2:  # the colour comes a second time
        style["mfc"] = palette.light(palette.CARD)
    if points == 1 and curve.low:
        ends = [[curve.y[0] - curve.low[0]], [curve.high[0] - curve.y[0]]]
        axes.errorbar(curve.x, curve.y, yerr=ends, capsize=3, elinewidth=1, ls="", **style)
        return
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, lw=0)
    axes.plot(curve.x, curve.y, ls=pattern if content.joined else "", **style)


def _linear(count: int, whole: bool = False) -> Any:
    """About so many round ticks, which may have to be whole numbers, as steps are."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole)


def _compact(value: float, _place: object = None) -> str:
    return compact(value)


def _legend(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> float:
    """Puts the names above the drawing, in as many columns as fit; returns its height in inches."""
    if not labels:
        return 0.0
    most = _WIDTH_PT / (max(map(text_width, labels)) + 32)
    columns = max(1, min(len(labels), int(most)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    return _LEGEND_ROW_IN * math.ceil(len(labels) / columns)
