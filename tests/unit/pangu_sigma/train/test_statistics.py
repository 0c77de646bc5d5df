import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.errors import CollectiveError
from pangu_sigma.train.statistics import ExtraSums, Statistics, check_row_limit, pack_statistics


@pytest.mark.parametrize(
    "layers, experts, extra",
    [
        (0, 4, {}),
        (1, 4, {"counts_undecided": True, "sums_values": True, "limits_rows": True}),
        (1, 4, {"counts_undecided": True, "sums_values": True, "limits_rows": True, "most_nodes": 2}),
        (3, 2, {"sums_values": True}),
        (3, 2, {"sums_values": True, "required_bins": 5}),
        (3, 2, {"counts_undecided": True, "limits_rows": True, "required_bins": 5}),
        (3, 2, {"counts_undecided": True, "limits_rows": True, "required_bins": 5, "most_nodes": 4}),
        (3, 2, {"limits_rows": True}),
        (3, 2, {"most_nodes": 2}),
    ],
)
def test_statistics_come_out_as_they_went_in(layers, experts, extra):
    rng = np.random.default_rng(0)
    rows, columns, extra = max(layers, 1), experts if layers else 1, ExtraSums(**extra)
    shapes = {
        "tokens": (),
        "task": (),
        "aux": (),
        "locality": (),
        "assigned": (rows, columns),
        "kept": (rows,),
        "kept_local": (rows,),
        **({"undecided": (rows,)} if extra.counts_undecided else {}),
        **({"value_sums": (rows, columns)} if extra.sums_values else {}),
        **({"required": (rows, columns * extra.required_bins)} if extra.required_bins else {}),
        **({"beyond_limit": ()} if extra.limits_rows else {}),
        **({"tokens_by_nodes": (rows, extra.most_nodes)} if extra.most_nodes else {}),
    }
    sums = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    statistics = Statistics(layers, experts, extra)
    vector = pack_statistics({name: Tensor(value) for name, value in sums.items()}).asnumpy()
    assert vector.shape == (statistics.size,)
    required = sums.pop("required", np.zeros(0, np.float32))
    np.testing.assert_array_equal(vector[statistics.required.start : statistics.required.stop], required.ravel())
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
