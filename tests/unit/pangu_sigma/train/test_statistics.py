import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.errors import CollectiveError
from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.selection_bias import BalanceBias, BalanceUpdate
from pangu_sigma.train.statistics import (
    ExtraSums,
    Rebalance,
    RowsOfLayers,
    Statistics,
    check_row_limit,
    pack_statistics,
)


@pytest.mark.parametrize(
    "layers, experts, extra",
    [
        (0, 4, {}),
        (1, 4, {"counts_undecided": True, "sums_values": True, "limits_rows": True}),
        (1, 4, {"counts_undecided": True, "sums_values": True, "limits_rows": True, "most_nodes": 2}),
        (1, 4, {"counts_undecided": True, "sums_values": True, "limits_rows": True, "counts_copies": True}),
        (3, 2, {"sums_values": True}),
        (3, 2, {"sums_values": True, "counts_copies": True}),
        (3, 2, {"sums_values": True, "required_bins": 5}),
        (3, 2, {"counts_undecided": True, "limits_rows": True}),
        (3, 2, {"counts_undecided": True, "limits_rows": True, "required_bins": 5}),
        (3, 2, {"counts_undecided": True, "limits_rows": True, "required_bins": 5, "most_nodes": 4}),
        (3, 2, {"limits_rows": True}),
        (3, 2, {"most_nodes": 2, "counts_copies": True}),
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
        **({"copies": (rows,)} if extra.counts_copies else {}),
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


def test_only_the_layers_that_have_a_bias_are_moved_by_their_loads():
    """Layers 0 and 2 of three have one; two experts, rate 0.1: by 1 - load / mean load, at most 1."""
    shape = RoutingShape(4, 2)
    biases, statistics = [BalanceBias(shape), BalanceBias(shape)], Statistics(3, 2)
    assigned = np.array([[3.0, 1.0], [0.0, 4.0], [4.0, 0.0]], np.float32)
    vector = np.concatenate([np.zeros(4), assigned.ravel(), np.zeros(6)]).astype(np.float32)
    rebalance = Rebalance(BalanceUpdate(biases, 0.1), statistics.assigned, RowsOfLayers([0, 2], 3))
    rebalance(Tensor(vector), Tensor(True))
    found = [bias.balance_bias.asnumpy()[0] for bias in biases]
    np.testing.assert_allclose(found, [[-0.05, 0.05], [-0.1, 0.1]], rtol=1e-6)
