"""Agreement of two routings, on tables that one can check by hand, and the matching against all permutations."""

from itertools import permutations

import numpy as np
import pytest

from pangu_sigma.metrics.agreement import agreement, match_experts, overlap

SWAPPED = np.array([1, 0, 2, 3])
ROW = [0, 1, 2, 3, 0, 1, 2, 3]


def of_rows(*rows):
    """<int>[rows, S, 1]"""
    return np.array(rows)[..., None]


def test_overlap_counts_pairs():
    first, second = np.array([[[0, 1], [2, 3]]]), np.array([[[0, 2], [2, 4]]])  # 4: not taken up
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[0, 2] = expected[1, 0] = expected[1, 2] = expected[2, 2] = expected[3, 2] = 1
    np.testing.assert_array_equal(overlap(first, second, 4), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_best_of_all(seed):
    shared = np.random.default_rng(seed).integers(0, 9, (5, 5))
    best = max(sum(shared[i, p] for i, p in enumerate(order)) for order in permutations(range(5)))
    assert shared[np.arange(5), match_experts(shared)].sum() == best


@pytest.mark.parametrize(
    ("first", "second", "same", "matched", "chance"),
    [
        (of_rows(ROW, ROW), of_rows(ROW, ROW), 1.0, 1.0, 0.25),
        # two experts have changed their numbers
        (of_rows(ROW, ROW), SWAPPED[of_rows(ROW, ROW)], 0.5, 1.0, 0.25),
        # they have in the rows that are matched by, not in the others
        (of_rows(ROW, ROW), np.concatenate((SWAPPED[of_rows(ROW)], of_rows(ROW))), 1.0, 0.5, 0.25),
        # shares 3/4, 1/4 and 3/4, 1/4 meet by chance in 9/16 + 1/16 of the tokens; here in 2 of 4
        (of_rows([0, 0, 0, 1], [0, 0, 0, 1]), of_rows([0, 0, 0, 1], [1, 0, 0, 0]), 0.5, 0.5, 0.625),
    ],
)
def test_agreement(first, second, same, matched, chance):
    assert agreement(first, second, 4) == pytest.approx((same, matched, chance))


def test_agreement_of_several_experts_a_token():
    """Their order does not count, and what was not taken up is no choice."""
    first = np.array([[[0, 1], [2, 3]], [[0, 1], [2, 4]]])
    second = np.array([[[1, 0], [3, 2]], [[1, 0], [3, 2]]])
    found = agreement(first, second, 4)
    assert found.same == 1.0  # 0, 1 and 2: all of the three choices of the second row
    assert found.chance == pytest.approx((0.5 * 0.5 * 3) * 2 / 3)


def test_routings_that_know_nothing_of_each_other_agree_by_chance():
    """Matching on the rows that are counted would find more than chance here: 8 experts, 64 tokens a half."""
    rng = np.random.default_rng(0)
    found = [agreement(*rng.integers(0, 8, (2, 16, 8, 1)), 8) for _ in range(50)]
    off = np.array([one.matched - one.chance for one in found])
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))
