import numpy as np
import pytest

from mindspore import Tensor

from pangu_sigma.train.statistics import Statistics, pack_statistics


@pytest.mark.parametrize(
    "layers, experts, undecided, values",
    [(0, 4, False, False), (1, 4, True, True), (3, 2, False, True), (3, 2, True, False)],
)
def test_statistics_come_out_as_they_went_in(layers, experts, undecided, values):
    rng = np.random.default_rng(0)
    rows, columns = max(layers, 1), experts if layers else 1
    shapes = {
        "tokens": (),
        "task": (),
        "aux": (),
        "locality": (),
        "assigned": (rows, columns),
        "kept": (rows,),
        "kept_local": (rows,),
        **({"undecided": (rows,)} if undecided else {}),
        **({"value_sums": (rows, columns)} if values else {}),
    }
    sums = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    statistics = Statistics(layers, experts, undecided, values)
    vector = pack_statistics({name: Tensor(value) for name, value in sums.items()}).asnumpy()
    assert vector.shape == (statistics.size,)
    found = statistics.unpack(vector)
    assert set(found) == set(sums)
    for name, value in sums.items():
        np.testing.assert_array_equal(found[name], value, name)
