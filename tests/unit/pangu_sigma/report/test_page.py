"""The report's page: its tables, its colours, its drawings, and that nothing in a name becomes markup."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pangu_sigma.report import page, palette
from pangu_sigma.report.page import embedded
from pangu_sigma.report.specs import Bar, Bars, Curve, Curves, FigureSpec, HeatMap, HeatMaps


def test_tables_name_rows_and_columns():
    root = ElementTree.fromstring(page.table(["variant", "time"], [["a<b>", "2\n1 to 3"]]))
    assert [(head.get("scope"), head.text) for head in root.iter("th")] == [
        ("col", "variant"),
        ("col", "time"),
        ("row", "a<b>"),
    ]
    (cell,) = root.iter("td")
    assert (cell.text, cell.find("small").text) == ("2", "1 to 3")


def test_nothing_in_a_text_is_markup():
    name = "</style><script>x</script>"
    whole = page.page(name, page.section(name, page.paragraph(name, "note"), page.figure(name, name, "")))
    assert "<script" not in whole and whole.count("&lt;script&gt;") == 6


def test_it_has_the_colours_of_both_schemes():
    whole = page.page("title", "")
    assert all(f"--{name}: {colour};" in whole for name, pair in palette.COLOURS.items() for colour in pair)


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
