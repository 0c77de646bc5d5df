"""Ranks among the tokens of a set, against sorted lists."""

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.routers.priority import rank_within_sets


@pytest.mark.parametrize(
    "levels", [40, 3, 1], ids=["all different", "many ties", "all equal"]
)  # different priorities among 40 tokens
@pytest.mark.parametrize("sets", [1, 4])
def test_ranks_are_those_of_sorted_lists(levels, sets):
    generator = np.random.default_rng(levels + sets)
    priority = (generator.permuted(np.tile(np.arange(40) % levels, (3, 1)), axis=1) - 1.0).astype(np.float32) * 1e-3
    of_set = generator.integers(0, sets, 40).astype(np.int32) * 3  # not all numbers are sets
    found = rank_within_sets(Tensor(priority), Tensor(of_set)).asnumpy()
    for row, values in zip(found, priority):
        for one in np.unique(of_set):
            members = [t for t in range(40) if of_set[t] == one]
            assert [t for _, t in sorted((-values[t], t) for t in members)] == sorted(members, key=lambda t: row[t])
            assert sorted(row[members]) == list(range(len(members)))
