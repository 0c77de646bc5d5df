"""The report's page: its tables, its colours, and that nothing in a name becomes markup."""

import xml.etree.ElementTree as ElementTree

from pangu_sigma.report import page, palette


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
