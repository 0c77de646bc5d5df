"""Drawings: where things stand, by hand arithmetic. A drawing is 360 wide; a character of a bar's text takes 7.2."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pangu_sigma.report.svg import Bar, Curve, Segment, bars, compact, curves, heat_map, legend, ticks


def parsed(drawing):
    return ElementTree.fromstring(drawing)


def numbers(element, *names):
    return tuple(float(element.get(name)) for name in names)


def points(path):
    """Coordinates of a path of straight lines."""
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.get("d").rstrip("Z")) if pair]


def texts(drawing):
    return {element.text: element for element in parsed(drawing).iter("text")}


def test_bars_share_a_scale_that_leaves_room_for_their_texts():
    rows = [
        Bar("a", [Segment(3.0, 0, "three"), Segment(1.0, 9, "one")], "4 s"),
        Bar("b", [Segment(2.0, 1, "two")], "2 s", 1.0, 3.0),
    ]
    drawing = bars(rows, "times")
    room = 360 - 8 - 3 * 7.2  # 330.4 for the longest, 4
    first, second, third = parsed(drawing).iter("rect")
    assert [numbers(one, "x", "width") for one in (first, second, third)] == [(0, 247.8), (247.8, 82.6), (0, 165.2)]
    assert (first.get("fill"), second.get("fill"), second.find("title").text) == ("var(--c0)", "var(--c1)", "one")
    assert numbers(first, "y", "height") == (18, 14) and numbers(third, "y") == (60,)
    (whisker,) = parsed(drawing).iter("path")
    assert whisker.get("d") == "M82.6 67.0H247.8M82.6 62.0V72.0M247.8 62.0V72.0"  # at 1/4 and 3/4 of the room
    shown = texts(drawing)
    assert numbers(shown["4 s"], "x", "y") == (round(room + 6, 1), 29)
    assert numbers(shown["2 s"], "x") == (253.8,)  # behind the whisker
    assert room + 6 + 3 * 7.2 < 360
    assert parsed(drawing).get("viewBox") == "0 0 360 84" and parsed(drawing).get("aria-label") == "times"


def test_bars_of_nothing_have_no_length():
    (bar,) = parsed(bars([Bar("a", [Segment(0.0, 0, "")], "0 s")], "times")).iter("rect")
    assert numbers(bar, "width") == (0,)


def test_curves_lie_in_their_frame():
    """y of 1 to 2 with 5 % of air: 0.95 at 216, 2.05 at 24. Tick texts of 3 characters put the frame's left at 31.6."""
    drawing = curves([Curve("a", 0, [0, 5, 10], [1.0, 2.0, 1.5])], "steps", "nats", "losses")
    (path,) = parsed(drawing).iter("path")
    left, right = 31.6 + 6, 360 - 6
    assert points(path) == [
        pytest.approx(point, abs=0.06)
        for point in (
            (left, 216 - 192 * 0.05 / 1.1),
            ((left + right) / 2, 24 + 192 * 0.05 / 1.1),
            (right, 216 - 192 * 0.55 / 1.1),
        )
    ]
    shown = texts(drawing)
    assert {"1", "1.5", "2", "0", "5", "10", "steps", "nats"} <= set(shown)
    assert numbers(shown["1.5"], "x", "y") == pytest.approx((26.6, 120 + 4), abs=0.06)
    assert (shown["10"].get("text-anchor"), shown["0"].get("text-anchor")) == ("end", None)  # both inside the drawing


def test_wide_ranges_are_logarithmic():
    drawing = curves([Curve("a", 0, [0, 1, 2], [1.0, 10.0, 100.0])], "", "", "")
    (path,) = parsed(drawing).iter("path")
    (_, top), (_, middle), (_, bottom) = points(path)
    assert middle - top == pytest.approx(bottom - middle, abs=0.11)
    assert {"1", "10", "100"} <= set(texts(drawing))
    enormous = curves([Curve("a", 0, [0, 1], [1.0, 1e300])], "", "", "")  # what a run that diverged may reach
    assert len(list(parsed(enormous).iter("line"))) <= 7


def test_a_band_spans_low_and_high():
    line = Curve("a", 0, [0, 10], [2.0, 2.0], low=[1.0, 1.0], high=[3.0, 3.0])
    band, middle = parsed(curves([line], "", "", "")).iter("path")
    (x0, top), (x1, _), (_, bottom), _ = points(band)
    assert (bottom - top, x1 - x0) == pytest.approx((192 / 1.1, 360 - 6 - 37.6 + 14.4), abs=0.11)
    assert points(middle)[0][1] == pytest.approx((top + bottom) / 2, abs=0.06)


def test_single_points_are_dots_with_whiskers():
    series = [Curve("a", 0, [1.0], [5.0], [4.0], [6.0]), Curve("b", 8, [2.0], [5.0])]
    drawing = curves(series, "", "", "")
    first, second = parsed(drawing).iter("circle")
    (whisker,) = parsed(drawing).iter("path")
    assert first.find("title").text == "a: 1, 5"
    assert (first.get("fill"), second.get("fill"), second.get("stroke")) == ("var(--c0)", "var(--card)", "var(--c0)")
    x, y = numbers(first, "cx", "cy")
    low, high = re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", whisker.get("d")).groups()
    assert (float(low) + float(high)) / 2 == pytest.approx(y, abs=0.06) and whisker.get("d").startswith(f"M{x:.1f} ")


def test_what_lies_above_the_top_is_cut_off():
    """The frame is that of values up to 2, though the first is 100; names of cuts differ between drawings."""
    whole = parsed(curves([Curve("a", 0, [0, 1, 2], [2.0, 1.0, 1.0])], "", "", "x"))
    cut = parsed(curves([Curve("a", 0, [0, 1, 2], [100.0, 1.0, 1.0])], "", "", "x", top=2.0))
    assert points(next(cut.iter("path")))[1:] == points(next(whole.iter("path")))[1:]
    (clip,), (group,) = cut.iter("clipPath"), cut.iter("g")
    assert group.get("clip-path") == f"url(#{clip.get('id')})"
    (rectangle,) = clip.iter("rect")
    assert numbers(rectangle, "y", "height") == (18, 216)
    other = parsed(curves([Curve("a", 0, [0, 1], [100.0, 1.0])], "", "", "y", top=2.0))
    assert next(other.iter("clipPath")).get("id") != clip.get("id")


def test_one_value_is_no_range():
    drawing = curves([Curve("a", 0, [0, 1], [0.0, 0.0])], "", "", "")
    assert [y for _, y in points(next(parsed(drawing).iter("path")))] == [120, 120]


def test_heat_map_cells():
    """Two rows of four columns; equal neighbours are one rectangle, and rectangles leave no gap between them."""
    drawing = heat_map([[0.0, 0.3, 0.3, 1.5], [0.5, 0.5, 0.5, 0.5]], ("first", "last"), "map")
    *cells, frame = parsed(drawing).iter("rect")
    left, width = 8 + 7.2, (360 - 15.2) / 4  # 15.2, 86.2
    assert [numbers(cell, "x", "width", "y", "height", "fill-opacity") for cell in cells] == [
        pytest.approx(values, abs=0.06)
        for values in (
            (left, width, 0, 12, 0.0),
            (left + width, 2 * width, 0, 12, 0.3),
            (left + 3 * width, width, 0, 12, 1.0),
            (left, 4 * width, 12, 12, 0.5),
        )
    ]
    assert numbers(cells[0], "x")[0] + numbers(cells[0], "width")[0] == pytest.approx(numbers(cells[1], "x")[0])
    assert numbers(frame, "height") == (24,)
    assert {"0", "first", "last"} == set(texts(drawing))
    assert numbers(list(parsed(heat_map([[1.0]] * 640, ("", ""), "")).iter("rect"))[-1], "height") == (1920,)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2.5, 5, 7.5, 10]),
        (0, 8, [0, 2, 4, 6, 8]),
        (0.95, 2.05, [1, 1.5, 2]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.30000000000000004, "0.3"),
        (12.5, "12.5"),
        (1234.0, "1234"),
        (2.5e6, "2.5e+06"),
        (0.0002, "0.0002"),
    ],
)
def test_compact_numbers(value, text):
    assert compact(value) == text


@pytest.mark.parametrize("mark", ["bar", "curve", "dot"])
def test_legend_names_and_colours(mark):
    items = list(ElementTree.fromstring(legend([("a<b", 2), ("c", 9)], mark)))
    assert ["".join(item.itertext()).strip() for item in items] == ["a<b", "c"]
    for item, colour in zip(items, (2, 1)):
        assert f"var(--c{colour})" in ElementTree.tostring(item).decode()


def test_curves_of_one_colour_differ_in_pattern():
    samples = [legend([("", number)], "curve") for number in range(16)]
    assert len(set(samples)) == 16


def test_names_are_escaped():
    name = 'a<b>"&'
    for drawing in (
        bars([Bar(name, [Segment(1, 0, name)], name)], name),
        curves([Curve(name, 0, [1], [1])], name, name, name),
        heat_map([[1.0]], (name, name), name),
        legend([(name, 0)]),
    ):
        assert "<b>" not in drawing and name in "".join(parsed(drawing).itertext())
