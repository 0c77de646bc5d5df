"""How numbers are written."""

import pytest

from pangu_sigma.report import numbers


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("time/step(s)", 0.0, "0 s"),
        ("time/step(s)", 0.0123, "12.3 ms"),
        ("time/step(s)", 1.234, "1.23 s"),
        ("time/step(s)", 119.0, "119 s"),
        ("time/step(s)", 120.0, "2 min"),
        ("time/epoch(s)", 7200.0, "2 h"),
        ("time/epoch(s)", 7e6, "1,944 h"),
        ("comm/inter_node(B)", 0.0, "0 B"),
        ("comm/inter_node(B)", 999.0, "999 B"),
        ("comm/inter_node(B)", 25.1e6, "25.1 MB"),
        ("comm/inter_node(B)", 3.21e9, "3.21 GB"),
        ("moe/drop_fraction", 0.0456, "4.6 %"),
        ("time/all_to_all_share", 1.0, "100.0 %"),
        ("valid/perplexity", 230.64, "230.6"),
        ("valid/perplexity", 12345.6, "12,346"),
        ("valid/perplexity", 1e304, "1e+304"),
        ("moe/load_max_over_mean", 1.33333, "1.333"),
    ],
)
def test_numbers_are_shown_as_their_name_says(name, value, text):
    assert numbers.shown(name, value) == text


def test_ranges_stand_below_means():
    assert numbers.with_range("x", None) == "-"
    assert numbers.with_range("x", {"mean": 2.0, "min": 2.0, "max": 2.0, "seeds": 1}) == "2"
    assert numbers.with_range("x", {"mean": 2.0, "min": 1.0, "max": 3.0, "seeds": 2}) == "2\n1 to 3"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999.4, "999 B"), (1000, "1.0 kB"), (25_140_000, "25.1 MB"), (3.21e9, "3.2 GB")]
)
def test_sizes_of_a_table_have_one_decimal(value, text):
    assert numbers.size(value, decimals=1) == text
