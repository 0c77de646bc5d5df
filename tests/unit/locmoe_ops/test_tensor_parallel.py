import numpy as np

from mindspore import Parameter, Tensor

from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.tensor_parallel import ALONE, marked, own_part, slice_of, whole_shape

WHOLE = np.arange(2 * 12 * 3).reshape(2, 12, 3)


def test_parameters_remember_their_part():
    part = marked(Parameter(Tensor(np.zeros((2, 3, 3), np.float32)), name="w"), ShardSpec(1, 2, 4))
    assert slice_of(part) == ShardSpec(1, 2, 4) and whole_shape(part) == WHOLE.shape
    np.testing.assert_array_equal(own_part(part, WHOLE), WHOLE[:, 6:9])
    plain = Parameter(Tensor(np.zeros((2, 3), np.float32)), name="b")
    assert slice_of(plain) is None and whole_shape(plain) == (2, 3) and own_part(plain, WHOLE) is WHOLE


def test_a_group_of_one_splits_nothing():
    assert (ALONE.size, ALONE.index, ALONE.slice(0)) == (1, 0, None)
