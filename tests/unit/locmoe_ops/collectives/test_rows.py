"""Counts of uneven exchanges are cut to what there is room for, the later ones first."""

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.collectives.rows import within

COUNTS = np.array([[2, 0, 3], [4, 1, 2], [1, 5, 0]], np.int32)


@pytest.mark.parametrize("bound", [0, 1, 4, 6, 7, 100])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_are_within_the_bound(axis, bound):
    expected = COUNTS.copy()
    for line in expected.T if axis == 0 else expected:
        left = bound
        for place, count in enumerate(line):
            line[place] = min(count, left)
            left -= line[place]
    np.testing.assert_array_equal(within(Tensor(COUNTS), axis, bound).asnumpy(), expected)
