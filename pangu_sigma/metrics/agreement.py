"""How alike two routings of the same tokens are: of one run at two times, or of runs with different seeds.

Experts of two seeds have no names in common: which expert of the one is which of the other has to be found. It is the
one-to-one assignment under which most choices agree (the Hungarian method, `scipy.optimize.linear_sum_assignment`).
Normalised mutual information would need no assignment, but it is defined for one expert a token, grows with the number
of experts where tokens are few, and is no share of tokens that anybody could picture. The assignment is found on every
other row and the agreement counted on the rest, so that what fits by chance does not count.

Shape legend: T tokens, k experts a token, E experts.
"""

from typing import NamedTuple

import numpy as np


class RoutingAgreement(NamedTuple):
    """Shares of choices, in [0, 1], each of the tokens that were not used to match experts.

    Attributes:
        same: the second routing chose the expert of the same number.
        matched: it chose the expert that is matched to the first routing's.
        chance: `matched` as two independent routings of the same loads would have it.
    """

    same: float
    matched: float
    chance: float


def agreement(first: np.ndarray, second: np.ndarray, num_experts: int) -> RoutingAgreement:
    """Agreement of two routings of one layer.

    Args:
        first, second: <int>[rows, S, k], experts of the same tokens, at least two rows; E where a choice was not taken
            up. num_experts: E.
    """
    fitted, counted = slice(0, None, 2), slice(1, None, 2)
    partner = match_experts(overlap(first[fitted], second[fitted], num_experts))
    shared = overlap(first[counted], second[counted], num_experts)
    tokens = first[counted][..., 0].size
    choices = max(int((first[counted] < num_experts).sum()), 1)
    of_first, of_second = (
        np.bincount(chosen[counted].reshape(-1), minlength=num_experts + 1)[:num_experts] / tokens
        for chosen in (first, second)
    )
    return RoutingAgreement(
        float(np.trace(shared)) / choices,
        float(shared[np.arange(num_experts), partner].sum()) / choices,
        float((of_first * of_second[partner]).sum()) * tokens / choices,
    )


def overlap(first: np.ndarray, second: np.ndarray, num_experts: int) -> np.ndarray:
    """<int64>[E, E]: tokens that go to expert i in the first routing and to expert j in the second.

    Args:
        first, second: <int>[..., k]; E where a choice was not taken up. num_experts: E.
    """
    size = num_experts + 1
    pairs = first[..., :, None].astype(np.int64) * size + second[..., None, :]  # (..., k, k)
    counts = np.bincount(pairs.reshape(-1), minlength=size * size).reshape(size, size)
    return np.asarray(counts[:num_experts, :num_experts])


def match_experts(shared: np.ndarray) -> np.ndarray:
    """<int64>[E]: of each expert of the first routing the one of the second, each once, so that the sum of `shared`
    <int>[E, E] over these pairs is the largest.
    """
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(shared, maximize=True)[1])
