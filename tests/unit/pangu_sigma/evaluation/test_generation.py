"""What the model writes, compared: exact match and F1. test_measurement.py runs the whole measurement."""

import pytest

from pangu_sigma.evaluation.generation import exact_match, f1, units

# found, answer: units in common / units of each, counted by hand
F1 = [
    ("1963年", "1963年", 1.0),
    ("在1963年", "1963年", 2 * 2 / (3 + 2)),  # 在, 1963, 年 and 1963, 年
    ("北京", "北京大学", 2 * 2 / (2 + 4)),
    ("大学北京", "北京大学", 1.0),  # a bag: order plays no part
    ("北北京", "北京", 2 * 2 / (3 + 2)),  # 北 counts once
    ("北北京", "北北", 2 * 2 / (3 + 2)),  # and here twice
    ("上海", "北京", 0.0),
    ("The cat sat", "the cat", 2 * 2 / (3 + 2)),
    ("", "x", 0.0),
    ("...", "", 1.0),
    ("used Python3 in 2008年", "python3", 2 * 1 / (5 + 1)),
]


@pytest.mark.parametrize(("found", "answer", "expected"), F1)
def test_f1(found, answer, expected):
    assert f1(found, [answer]) == pytest.approx(expected)


def test_units_are_characters_of_chinese_and_words_of_the_rest():
    assert units("ＰａｎＧｕ-Σ 是 3.5倍，快！ don't") == ["pangu", "σ", "是", "3", "5", "倍", "快", "don", "t"]


EM = [
    ("北京。", "北京", True),
    ("北京", "北 京", True),
    ("大学北京", "北京大学", False),
    ("Paris ", "paris", True),
    ("Paris, France", "Paris", False),
]


@pytest.mark.parametrize(("found", "answer", "expected"), EM)
def test_exact_match(found, answer, expected):
    assert exact_match(found, [answer]) is expected


def test_the_best_of_several_answers_counts():
    assert exact_match("b", ["a", "b"]) and f1("a b", ["c", "a b c", "a"]) == pytest.approx(2 * 2 / 5)
