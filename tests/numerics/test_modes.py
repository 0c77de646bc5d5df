"""PyNative mode, which users debug in, computes what the compiled layer computes."""

import numpy as np
import pytest

import mindspore as ms


@pytest.mark.parametrize("name", ["dense, top 2, 3 groups, by weight"])
def test_pynative_mode_equals_graph_mode(one_process, name):
    compiled = one_process(name, "scattered")
    found = one_process(name, "scattered", ms.PYNATIVE_MODE)
    assert found.keys() == compiled.keys()
    for key, array in compiled.items():
        # float32 with other fusions, hence another order of sums: a few roundings of the largest element.
        np.testing.assert_allclose(found[key], array, rtol=0, atol=1e-6 * np.abs(array).max(), err_msg=key)
