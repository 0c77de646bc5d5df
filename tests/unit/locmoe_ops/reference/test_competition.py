"""Experts that choose tokens, and the fastmoe library's cap, on tables computed by hand."""

import numpy as np
import pytest

from locmoe_ops.reference.competition import expert_choice, library_cap

# Four tokens, two experts; an even share is two tokens each with k = 1.
PROBABILITY = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])


@pytest.mark.parametrize(
    ("sets", "top_k", "choice", "absent"),
    [
        # Expert 0 takes tokens 0 and 1, expert 1 tokens 3 and 2: each token its one expert.
        ([0, 0, 0, 0], 1, [[0], [0], [1], [1]], [[0], [0], [0], [0]]),
        # Two sets of two: of tokens 0 and 1 expert 0 takes 0 and expert 1 takes 1; of 2 and 3, 2 and 3.
        ([0, 0, 1, 1], 1, [[0], [1], [0], [1]], [[0], [0], [0], [0]]),
        # Sets of three and one: a share of ceil(3 / 2) = 2. Expert 0 takes 0 and 1, expert 1 takes 2 and 1.
        # Token 1 keeps its likeliest. Token 3 is alone with a share of ceil(1 / 2) = 1: both take it.
        ([0, 0, 0, 5], 1, [[0], [0], [1], [1]], [[0], [0], [0], [0]]),
        # k = 2: both experts take all four.
        ([0, 0, 0, 0], 2, [[0, 1], [0, 1], [0, 1], [1, 0]], [[0, 0]] * 4),
    ],
)
def test_experts_choose(sets, top_k, choice, absent):
    found, missing = expert_choice(PROBABILITY, np.array(sets), top_k)
    assert found.tolist() == choice and missing.tolist() == [[bool(one) for one in row] for row in absent]


def test_a_token_that_no_expert_takes_is_absent():
    """Equal tokens: both experts take the first two of four, and the others have none."""
    choice, absent = expert_choice(np.full((4, 2), 0.5), np.zeros(4, int), 1)
    assert choice[:2].tolist() == [[0], [0]] and absent.tolist() == [[False], [False], [True], [True]]


# Five tokens of home 0, four experts; experts 0 and 1 are at home. First choices: 2, 3, 2, 0, 3.
SCORE = np.array(
    [
        [1.0, 0.0, 5.0, 2.0],
        [0.0, 1.0, 2.0, 3.0],
        [2.0, 1.0, 4.0, 3.0],
        [6.0, 1.0, 0.0, 5.0],
        [1.0, 0.5, 0.0, 2.0],
    ]
)
FREE = [[2, 3], [3, 2], [2, 3], [0, 3], [3, 0]]


@pytest.mark.parametrize(
    ("most", "choice"),
    [
        (1.0, FREE),
        # A cap of four, which four remote first choices reach: all four leave, each with its best expert at home;
        # token 3, at home, gets its second choice there too.
        (0.8, [[0, 2], [1, 3], [0, 2], [0, 1], [0, 3]]),
        # A cap of two: the largest first scores, 5 and 4, are those of tokens 0 and 2. Token 3's 6 is no remote one.
        (0.4, [[0, 2], [1, 0], [0, 2], [0, 1], [0, 1]]),
        (0.0, [[0, 1], [1, 0], [0, 1], [0, 1], [0, 1]]),
    ],
)
def test_the_librarys_cap(most, choice):
    local = np.tile([True, True, False, False], (5, 1))
    assert library_cap(SCORE, local, np.zeros(5, int), most).tolist() == choice


def test_the_cap_does_not_bind_below_it():
    """Of ten tokens, of which four want to leave, a cap of five leaves all as they are, second choices too."""
    score, local = np.vstack([SCORE, SCORE[[3] * 5]]), np.tile([True, True, False, False], (10, 1))
    assert library_cap(score, local, np.zeros(10, int), 0.5).tolist() == [*FREE, *[FREE[3]] * 5]


def test_a_node_with_one_expert_sends_second_choices_away():
    local = np.tile([False, True, False, False], (5, 1))
    found = library_cap(SCORE, local, np.zeros(5, int), 0.0)
    assert found.tolist() == [[1, 2], [1, 3], [1, 2], [1, 0], [1, 3]]
