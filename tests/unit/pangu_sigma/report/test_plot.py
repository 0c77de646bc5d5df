"""What matplotlib is asked to draw: lengths, whiskers, markers, colours, axes; and that it leaves no trace."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from pangu_sigma.report import palette
from pangu_sigma.report.plot import WIDTH_IN, can_draw, drawn
from pangu_sigma.report.specs import Bar, Bars, Curve, Curves, HeatMap, HeatMaps, Panels

TWO = Curves([Curve("a", 0, [0, 1, 2], [3.0, 2.0, 1.0]), Curve("b", 1, [0, 1], [2.0, 2.0])], "steps", "loss (nats)")


def bars_of(axes):
    """Left end and width of what has a width."""
    return [(bar.get_x(), bar.get_width()) for bar in axes.patches if bar.get_width()]


def test_bars_begin_at_zero_and_their_pieces_follow_one_another():
    content = Bars([Bar("a", [3.0, 0.0, 1.0], "4 s"), Bar("b", [1.0, 1.0, 0.0], "2 s")], "time (s)", ("x", "y", "z"))
    with drawn(content, {}) as figure:
        (axes,) = figure.axes
        assert bars_of(axes) == [(0, 3), (3, 1), (0, 1), (1, 1)]
        assert axes.get_xlim()[0] == 0 and axes.get_xlabel() == "time (s)"
        assert {text.get_text() for text in axes.texts} == {"a", "4 s", "b", "2 s"}
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["x", "y", "z"]
        first, _, last, *_ = axes.patches
        assert to_hex(first.get_facecolor()) != to_hex(last.get_facecolor())


def test_a_piece_that_no_bar_has_is_not_in_the_legend():
    with drawn(Bars([Bar("a", [3.0, 0.0], "3 s")], "time (s)", ("x", "y")), {}) as figure:
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x"]


def test_the_text_behind_the_longest_bar_is_inside():
    with drawn(Bars([Bar("a", [1.0], "a text of some length")], "s"), {}) as figure:
        figure.canvas.draw()
        (axes,) = figure.axes
        for text in axes.texts:
            assert text.get_window_extent().x1 <= axes.get_window_extent().x1


@pytest.mark.parametrize(("low", "high", "whiskers"), [(None, None, 0), (1.5, 2.5, 1)])
def test_a_whisker_is_drawn_for_several_seeds_only(low, high, whiskers):
    with drawn(Bars([Bar("a", [2.0], "2 s", 0, low, high)], "s"), {}) as figure:
        (axes,) = figure.axes
        found = [segment for lines in axes.collections for segment in lines.get_segments()]
        assert len(found) == whiskers
        assert not found or sorted(found[0][:, 0]) == [1.5, 2.5]


def test_curves_have_their_points_colours_markers_and_axes():
    with drawn(TWO, {}) as figure:
        (axes,) = figure.axes
        first, second = axes.lines
        assert (list(first.get_xdata()), list(first.get_ydata())) == ([0, 1, 2], [3, 2, 1])
        assert [to_hex(line.get_color()) for line in axes.lines] == [palette.hue(0), palette.hue(1)]
        assert first.get_marker() != second.get_marker() and "" not in (first.get_marker(), second.get_marker())
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", "loss (nats)")
        assert not axes.collections and figure.get_figwidth() == WIDTH_IN


def test_sixteen_curves_can_be_told_apart_without_their_colours():
    """With markers, and without them by colour and pattern."""
    for measured in (True, False):
        curves = [Curve(str(place), place, [0, 1], [1.0, 1.0 + place]) for place in range(16)]
        with drawn(Curves(curves, "", "", measured=measured), {}) as figure:
            styles = {
                (line.get_color(), line.get_marker(), str(line._dash_pattern), line.get_markerfacecolor())
                for line in figure.axes[0].lines
            }
        assert len(styles) == 16


@pytest.mark.parametrize(
    ("points", "measured", "marked"), [(10, True, True), (40, True, True), (90, True, False), (10, False, False)]
)
def test_markers_stand_where_something_was_measured(points, measured, marked):
    content = Curves([Curve("a", 0, list(range(points)), [1.0] * points)], "", "", measured=measured)
    with drawn(content, {}) as figure:
        assert (figure.axes[0].lines[0].get_marker() not in ("", "None")) is marked


def test_a_band_spans_low_and_high():
    with drawn(Curves([Curve("a", 0, [0, 10], [2.0, 2.0], [1.0, 1.0], [3.0, 3.0])], "", ""), {}) as figure:
        (band,) = figure.axes[0].collections
        assert band.get_paths()[0].get_extents().bounds == (0, 1, 10, 2)


def test_a_point_has_a_whisker_where_there_are_seeds():
    content = Curves([Curve("a", 0, [1], [5.0], [4.0], [7.0]), Curve("b", 1, [2], [5.0])], "", "", joined=False)
    with drawn(content, {}) as figure:
        (whisker,) = figure.axes[0].collections
        assert np.array_equal(whisker.get_segments()[0], [[1, 4], [1, 7]])


@pytest.mark.parametrize(
    ("values", "logarithmic", "scale"),
    [([1.0, 10.0, 100.0], True, "log"), ([1.0, 2.0], True, "linear"), ([0.0, 100.0], True, "linear"),
     ([1.0, 100.0], False, "linear")],
)  # fmt: skip
def test_wide_ranges_are_logarithmic(values, logarithmic, scale):
    content = Curves([Curve("a", 0, list(range(len(values))), values)], "", "", logarithmic=logarithmic)
    with drawn(content, {}) as figure:
        assert figure.axes[0].get_yscale() == scale


def test_what_lies_above_the_top_is_cut_off():
    content = Curves([Curve("a", 0, [0, 1, 2], [100.0, 1.0, 2.0])], "", "", top=2.0)
    with drawn(content, {}) as figure:
        assert 2.0 < figure.axes[0].get_ylim()[1] < 2.2


@pytest.mark.parametrize(("values", "zero", "low"), [([50.0, 60.0], True, 0.0), ([0.0, 0.0], True, 0.0)])
def test_the_axis_begins_at_zero_where_it_should(values, zero, low):
    with drawn(Curves([Curve("a", 0, [0, 1], values)], "", "", from_zero=zero), {}) as figure:
        assert figure.axes[0].get_ylim()[0] == low < figure.axes[0].get_ylim()[1]


def test_panels_share_an_axis_and_a_legend():
    content = Panels([(name, TWO) for name in ("first", "second")])
    with drawn(content, {}) as figure:
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["first", "second"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


@pytest.mark.parametrize(("most", "extend"), [(2.0, "neither"), (9.0, "max")])
def test_heat_maps_have_one_colour_bar_on_which_an_even_load_is_white(most, extend):
    maps = [HeatMap("a", [[0.0, 1.0], [most, 1.0]], [0, 10, 20]), HeatMap("b", [[1.0]], [0, 10])]
    with drawn(HeatMaps(maps, "steps", "expert", "tokens / even load", 2.0), {}) as figure:
        first, second, bar = figure.axes
        (image,) = first.images
        assert np.array_equal(image.get_array(), [[0.0, 1.0], [most, 1.0]]) and image.get_extent() == [0, 20, 1.5, -0.5]
        assert min(image.cmap(image.norm(1.0))) > 0.95 > 0.6 > min(image.cmap(image.norm(0.0)))
        assert second.images[0].colorbar.extend == extend and bar.get_xlabel() == "tokens / even load"
        assert [text.get_text() for text in bar.get_xticklabels()] == ["0", "0.5", "1", "2"]


def test_hundreds_of_experts_are_one_picture():
    maps = [HeatMap("a", np.ones((640, 40)).tolist(), list(range(41)))]
    with drawn(HeatMaps(maps, "", "", "", 2.0), {}) as figure:
        assert figure.get_figheight() < 4


def test_the_settings_of_others_neither_matter_nor_change():
    before = dict(matplotlib.rcParams)
    with drawn(TWO, {}) as figure:
        expected = figure.axes[0].lines[0].get_linewidth()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"lines.linewidth": 9}), drawn(TWO, {}) as figure:
        assert figure.axes[0].lines[0].get_linewidth() == expected
        assert matplotlib.rcParams["lines.linewidth"] == expected


def test_threads_draw_the_same():
    def draw(_):
        with drawn(TWO, {}) as figure:
            content = io.BytesIO()
            figure.savefig(content, format="png")
            return content.getvalue()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(draw, range(8)))) == 1


DRAW = """
import sys, pangu_sigma.report.runs
from pangu_sigma.report.page import embedded
from pangu_sigma.report.specs import Curve, Curves, FigureSpec
there = [name for name in ("matplotlib", "mindspore") if name in sys.modules]
embedded(FigureSpec("a", "a", "a", Curves([Curve("a", 0, [1], [1.0])], "x", "y")))
print(there, [name for name in ("matplotlib", "matplotlib.pyplot", "mindspore") if name in sys.modules])
"""


def test_nothing_is_imported_before_a_figure_is_drawn_and_pyplot_never():
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True)
    assert done.stdout.strip() == "[] ['matplotlib']", done.stderr


def test_it_is_known_whether_matplotlib_is_there(monkeypatch):
    assert can_draw()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not can_draw()
