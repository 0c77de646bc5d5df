"""The report's page: its tables, its colours, and that nothing in a name becomes markup."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pangu_sigma.report import page


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


def _luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme):
    """WCAG 2: 4.5 for text, 3 for what is drawn, on the ground and on cards, in the light and the dark scheme."""
    style = re.findall(r"(?s):root \{.*?\}", page._STYLE)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style))
    for ground in ("ground", "card"):
        for name, least in [("ink", 4.5), ("muted", 4.5), *((f"c{number}", 3.0) for number in range(8))]:
            light, dark = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (name, ground)
