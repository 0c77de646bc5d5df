"""Labels that are too long, and ticks that are round."""

import pytest

from pangu_sigma.report.labels import LABEL, compact, log_ticks, shortened, text_width


def test_long_labels_keep_their_end():
    assert shortened("a" * LABEL) == "a" * LABEL
    assert shortened("a" * LABEL + "b") == "\u2026" + "a" * (LABEL - 2) + "b"
    assert text_width(shortened("\u4e13" * 50)) <= LABEL and shortened("\u4e13" * 50).endswith("\u4e13")


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
