"""Which experts go together, on tables counted by hand."""

import numpy as np
import pytest

from locmoe_ops.routers.co_activation import co_activation, partner_table

# Four tokens, three experts a token of five; expert 5 stands for a choice that was not taken up.
EXPERT = np.array([[0, 1, 2], [1, 0, 4], [3, 1, 5], [5, 5, 2]])


def test_pairs_are_counted_by_token():
    assert co_activation(EXPERT, 5).tolist() == [
        [0, 2, 1, 0, 1],
        [2, 0, 1, 1, 1],
        [1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
    ]


PAIRS = np.array(  # two groups of four: of the first, 0 goes with 3 most often, 1 with 2 and 3 alike
    [
        [0, 1, 4, 9, 9, 9, 9, 9],
        [1, 0, 3, 3, 9, 9, 9, 9],
        [4, 3, 0, 0, 9, 9, 9, 9],
        [9, 3, 0, 0, 9, 9, 9, 9],
        [9, 9, 9, 9, 0, 1, 2, 3],
        [9, 9, 9, 9, 1, 0, 3, 2],
        [9, 9, 9, 9, 2, 3, 0, 1],
        [9, 9, 9, 9, 3, 2, 1, 0],
    ]
)


@pytest.mark.parametrize(
    ("stretches", "partners", "followers"),
    [
        (1, 1, [[3], [2], [0], [0], [3], [2], [1], [0]]),
        (1, 2, [[2, 3], [2, 3], [0, 1], [0, 1], [2, 3], [2, 3], [0, 1], [0, 1]]),
        (2, 1, [[1], [0], [3], [2], [1], [0], [3], [2]]),
        (2, None, [[1], [0], [3], [2], [1], [0], [3], [2]]),
        (1, None, [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]] * 2),
    ],
)
def test_partners(stretches, partners, followers):
    table = partner_table(8, 2, stretches, partners, None if partners is None else PAIRS)
    assert [np.flatnonzero(row).tolist() for row in table] == followers
