"""Measures of load, nodes and domains, on tables that one can check by hand."""

import math

import numpy as np
import pytest

from pangu_sigma.metrics.load import (
    effective_experts,
    load_entropy,
    max_violation,
    min_violation,
    nodes_touched,
    specialisation,
)

HALVES = math.log(2) / math.log(4)  # entropy of two equal shares, of four experts


@pytest.mark.parametrize(
    ("load", "most", "least", "entropy"),
    [
        ([5, 5, 5, 5], 0.0, 0.0, 1.0),
        ([8, 4, 4, 0], 1.0, 1.0, 1.5 * math.log(2) / math.log(4)),  # shares 1/2, 1/4, 1/4: 1.5 bits of 2
        ([20, 0, 0, 0], 3.0, 1.0, 0.0),
        ([6, 6, 0, 0], 1.0, 1.0, HALVES),
        ([3, 2, 2, 1], 0.5, 0.5, None),
        ([7], 0.0, 0.0, 1.0),
        ([0, 0], -1.0, 1.0, 0.0),  # nothing at all
    ],
)
def test_load(load, most, least, entropy):
    load = np.array(load, float)
    assert (max_violation(load), min_violation(load)) == (pytest.approx(most), pytest.approx(least))
    if entropy is not None:
        assert load_entropy(load) == pytest.approx(entropy, abs=1e-12)


def test_load_of_layers():
    load = np.array([[5.0, 5.0], [8.0, 0.0]])
    np.testing.assert_allclose(max_violation(load), [0.0, 1.0])
    np.testing.assert_allclose(min_violation(load), [0.0, 1.0])
    np.testing.assert_allclose(load_entropy(load), [1.0, 0.0])
    np.testing.assert_allclose(effective_experts(load), [2.0, 1.0])


@pytest.mark.parametrize(
    ("load", "told"),
    [
        ([[3, 3], [5, 5]], 0.0),  # both domains use both experts alike
        ([[4, 0], [0, 6]], 1.0),  # each has its own
        ([[4, 4, 0, 0], [0, 0, 9, 1]], 1.0),
        # domains are equally likely; expert 0 tells which (3/4 of its tokens), expert 1 the other way:
        # 1 bit less the entropy of (3/4, 1/4), which is 0.811278 bits
        ([[3, 1], [1, 3]], 0.188722),
        ([[3, 5]], None),
        ([[3, 5], [0, 0]], None),  # the other domain has no token
    ],
)
def test_what_an_expert_tells_of_the_domain(load, told):
    found = specialisation(np.array(load))
    assert found == (told if told is None else pytest.approx(told, abs=1e-6))


def test_nodes_touched():
    node = np.array([0, 0, 3, 3, 1])  # whatever numbers nodes have
    expert = np.array([[0, 1, 0], [0, 2, 1], [4, 2, 0], [3, 2, 5], [5, 5, 5]])  # 5: not taken up
    assert nodes_touched(expert, node).tolist() == [1, 2, 3, 1, 0]
    assert nodes_touched(expert[:, None, :1], node).tolist() == [[1], [1], [1], [1], [0]]
