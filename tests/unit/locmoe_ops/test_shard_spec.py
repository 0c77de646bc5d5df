import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.shard_spec import ShardSpec

WHOLE = np.arange(2 * 12 * 3).reshape(2, 12, 3)


def test_parts_are_equal_stretches_of_the_axis():
    for index in range(4):
        part = ShardSpec(1, index, 4)
        np.testing.assert_array_equal(part.cut(WHOLE), WHOLE[:, 3 * index : 3 * index + 3])
        assert part.shape_of(WHOLE.shape) == (2, 3, 3) and part.whole_shape((2, 3, 3)) == WHOLE.shape


def test_blocks_are_cut_each_by_itself():
    """A word table with slots: of the first six rows and of the second six, each rank has a third."""
    rows = WHOLE[0]
    np.testing.assert_array_equal(ShardSpec(0, 1, 3, blocks=2).cut(rows), rows[[2, 3, 8, 9]])


@pytest.mark.parametrize(("axis", "parts", "blocks"), [(0, 2, 1), (1, 4, 1), (1, 2, 3), (2, 3, 1), (1, 1, 1)])
def test_joined_parts_are_the_whole(axis, parts, blocks):
    slices = [ShardSpec(axis, index, parts, blocks) for index in range(parts)]
    np.testing.assert_array_equal(slices[0].join([part.cut(WHOLE) for part in slices]), WHOLE)


def test_unequal_parts_are_refused():
    with pytest.raises(InputError, match=r"axis 1 of shape \[2, 12, 3\].*multiple of 5"):
        ShardSpec(1, 0, 5).cut(WHOLE)
    with pytest.raises(InputError, match="multiple of 8"):
        ShardSpec(1, 0, 4, blocks=2).shape_of(WHOLE.shape)
