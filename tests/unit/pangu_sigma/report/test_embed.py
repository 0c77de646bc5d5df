"""Figures as elements of a page: its colours, text as text, nothing from outside, the same each time."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pangu_sigma.report import palette
from pangu_sigma.report.embed import embedded
from pangu_sigma.report.specs import Bar, Bars, Curve, Curves, FigureSpec, HeatMap, HeatMaps

NAME = 'a<b>"& 0.12345 \u4e13\u5bb6'


def spec(content, name="some", title="Some title"):
    return FigureSpec(name, title, "Some sentence.", content)


CONTENTS = {
    "bars": Bars([Bar(NAME, [1.0, 2.0], "3 s", 0, 2.5, 3.5)], "time (s)", ("x", NAME)),
    "curves": Curves([Curve(NAME, place, [0, 1, 2], [3.0, 2.0, 1.0]) for place in range(3)], "steps", "loss", top=2.5),
    "maps": HeatMaps([HeatMap(NAME, [[0.0, 1.0], [2.0, 1.0]], [0, 1, 2])], "steps", "expert", "load", 2.0),
}


@pytest.fixture(scope="module", params=list(CONTENTS))
def drawing(request):
    return embedded(spec(CONTENTS[request.param], request.param, NAME))


def parsed(drawing):
    return ElementTree.fromstring(drawing.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def test_it_is_one_element_that_loads_nothing(drawing):
    root = parsed(drawing)
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label") == NAME
    assert "http" not in drawing and "<script" not in drawing and "<style" not in drawing and "<metadata" not in drawing
    for place in re.findall(r'href="([^"]{0,22})', drawing):
        assert place.startswith(("#", "data:image/png;base64,"))


def test_names_are_text(drawing):
    assert NAME in ["".join(text.itertext()).strip() for text in parsed(drawing).iter("text")]


def test_the_font_is_the_page_s(drawing):
    assert "DejaVu" not in drawing and "font-family" not in drawing and "font-size: 8px" in drawing


def test_colours_are_those_of_the_page(drawing):
    ours = {pair[0] for pair in palette.COLOURS.values()}
    assert not ours & set(re.findall(r"#[0-9a-f]{6}", drawing))
    assert f"var(--{palette.INK})" in drawing
    assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= set(palette.COLOURS)


def test_the_same_figure_is_the_same_text_and_two_share_no_name():
    first, again = (embedded(spec(CONTENTS["curves"])) for _ in range(2))
    assert first == again
    other = embedded(spec(CONTENTS["curves"], "other"))
    names = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, other)]
    assert names[0] and not names[0] & names[1]
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', first)) <= names[0]


def test_a_long_curve_is_small():
    many = [Curve(str(place), place, list(range(100)), [1 / (1 + x) for x in range(100)]) for place in range(10)]
    assert len(embedded(spec(Curves(many, "steps", "loss", measured=False)))) < 40_000
