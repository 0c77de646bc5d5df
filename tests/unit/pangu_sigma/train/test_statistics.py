import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.errors import CollectiveError
from pangu_sigma.train.statistics import Statistics, check_row_limit, pack_statistics


@pytest.mark.parametrize(
    "layers, experts, undecided, values, limited, nodes",
    [
        (0, 4, False, False, False, 0),
        (1, 4, True, True, True, 2),
        (3, 2, False, True, False, 0),
        (3, 2, True, False, True, 4),
        (3, 2, False, False, True, 0),
        (3, 2, False, False, False, 2),
    ],
)
def test_statistics_come_out_as_they_went_in(layers, experts, undecided, values, limited, nodes):
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
        **({"beyond_limit": ()} if limited else {}),
        **({"tokens_by_nodes": (rows, nodes)} if nodes else {}),
    }
    sums = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    statistics = Statistics(layers, experts, undecided, values, limited, nodes)
    vector = pack_statistics({name: Tensor(value) for name, value in sums.items()}).asnumpy()
    assert vector.shape == (statistics.size,)
    found = statistics.unpack(vector)
    assert set(found) == set(sums)
    for name, value in sums.items():
        np.testing.assert_array_equal(found[name], value, name)


@pytest.mark.parametrize("rows", [1.0, 1234.0, np.nan])
def test_rows_beyond_the_limit_end_the_job_with_the_advice(rows):
    with pytest.raises(CollectiveError, match=r"step 7: .* rows came .*ragged_limit \(1.5\).*; raise moe.dispatch"):
        check_row_limit({"beyond_limit": np.float32(rows)}, 1.5, "step 7")


@pytest.mark.parametrize("sums", [{}, {"beyond_limit": np.float32(0)}])
def test_rows_within_the_limit_pass(sums):
    check_row_limit(sums, 1.5, "step 7")
