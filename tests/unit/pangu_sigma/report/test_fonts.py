"""Which fonts draw a text, with fonts made up."""

from types import SimpleNamespace

import pytest
from matplotlib import font_manager

from pangu_sigma.report import fonts

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
    own = fonts._characters(fonts._file(fonts.LATIN))  # matplotlib may search for it, among real fonts
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(fonts, "_file", lambda family: family)
    monkeypatch.setattr(fonts, "_characters", lambda path: frozenset(MADE_UP.get(path, "")) or own)
    fonts._others.cache_clear()
    yield
    fonts._others.cache_clear()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        (["locmoe", "switch_1"], []),
        (["\u03b1\u0431"], []),  # Greek and Cyrillic are in matplotlib's own
        (["locmoe", "\u4e13\u5bb6"], ["Big Sans SC"]),
        (["\u4e13", "\uac00"], ["Big Sans SC", "Other Sans"]),
        (["\U0001f980"], []),  # nobody has it
    ],
)
def test_the_fewest_fonts_that_have_all_characters(installed, texts, expected):
    assert fonts.families(texts) == [fonts.LATIN, *expected]
