"""Labels that are too long, ticks that are round, and which fonts draw a text, with fonts made up."""

from types import SimpleNamespace

import pytest
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from pangu_sigma.report import labels
from pangu_sigma.report.labels import CHARACTER_PT, compact, log_ticks, shortened, text_width

FONT = FontProperties(family="DejaVu Sans", size=8)


@pytest.mark.parametrize("label", ["seed_1", "locmoe.hierarchical+two_chunks", "WMWMWM", "ABCXYZ_QG", "0123456789-/%@"])
def test_labels_are_no_wider_than_they_are_taken_for(label):
    assert TextPath((0, 0), label, prop=FONT).get_extents().width <= text_width(label)


def test_long_labels_keep_their_end():
    """Of 20 usual characters' room the sign that something is missing takes 1.65."""
    room = 20 * CHARACTER_PT
    assert shortened("a" * 20, room) == "a" * 20
    assert shortened("a" * 20 + "b", room) == "\u2026" + "a" * 17 + "b"
    assert shortened("\u4e13" * 50, room) == "\u2026" + "\u4e13" * 11
    assert shortened("a", 0.0) == "\u2026"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.0, 100.0, [1, 2, 5, 10, 20, 50, 100]),
        (1.0, 1e3, [1, 3, 10, 30, 100, 300, 1000]),
        (0.9, 8.0, [1, 1.5, 2, 3, 5, 7]),
        (1.0, 1e5, [10**n for n in range(6)]),
    ],
)
def test_logarithmic_ticks_are_round(low, high, expected):
    assert log_ticks(low, high) == pytest.approx(expected)


def test_enormous_ranges_have_few_ticks():
    assert len(log_ticks(1.0, 1e300)) <= 7  # what a run that diverged may reach


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.30000000000000004, "0.3"),
        (12.5, "12.5"),
        (1234.0, "1234"),
        (2.5e6, "2.5e6"),
        (0.0002, "0.0002"),
        (2.5e-5, "2.5e-5"),
    ],
)
def test_compact_numbers(value, text):
    assert compact(value) == text


MADE_UP = {
    "Serif": "\u4e13\u5bb6",
    "Big Sans TC": "\u4e13\u5bb6",
    "Big Sans SC": "\u4e13\u5bb6",
    "Other Sans": "\uac00",
}


@pytest.fixture
def installed(monkeypatch):
    """Four fonts beside matplotlib's own, one of them bold."""
    entries = [SimpleNamespace(name=name, fname=name, style="normal", weight=400) for name in MADE_UP]
    entries.append(SimpleNamespace(name="A Bold Sans", fname="Serif", style="normal", weight=700))
    own = labels._characters(labels._file(labels.LATIN))  # matplotlib may search for it, among real fonts
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    monkeypatch.setattr(labels, "_file", lambda family: family)
    monkeypatch.setattr(labels, "_characters", lambda path: frozenset(MADE_UP.get(path, "")) or own)
    labels._others.cache_clear()
    yield
    labels._others.cache_clear()


@pytest.mark.parametrize(
    ("texts", "expected", "missing"),
    [
        ([], [], ""),
        (["locmoe", "switch_1"], [], ""),
        (["\u03b1\u0431"], [], ""),  # Greek and Cyrillic are in matplotlib's own
        (["locmoe", "\u4e13\u5bb6"], ["Big Sans SC"], ""),
        (["\u4e13", "\uac00"], ["Big Sans SC", "Other Sans"], ""),
        (["\U0001f980"], [], "\U0001f980"),
        (["\u4e13\U0001f980", "\u56ed"], ["Big Sans SC"], "\u56ed\U0001f980"),
    ],
)
def test_the_fewest_fonts_that_have_all_characters(installed, texts, expected, missing):
    assert labels.fonts_for(texts) == ((labels.LATIN, *expected), missing)


def test_a_font_that_was_installed_after_matplotlib_wrote_its_list(installed, monkeypatch):
    """Its list lies in a cache for good: without another look a font that was installed since is never found."""
    monkeypatch.setitem(MADE_UP, "/fonts/new.ttc", "\u56ed")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["/fonts/new.ttc", "/fonts/broken.ttf", "Serif"])

    def add(path):
        if "broken" in path:
            raise RuntimeError("Can not load face")
        font_manager.fontManager.ttflist.append(
            SimpleNamespace(name="New Sans", fname=path, style="normal", weight=400)
        )

    monkeypatch.setattr(font_manager.fontManager, "addfont", add)
    assert labels.fonts_for(["\u4e13\u56ed"]) == ((labels.LATIN, "Big Sans SC", "New Sans"), "")
