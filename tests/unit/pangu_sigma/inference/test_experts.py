"""Experts by blocks against a loop over tokens."""

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from locmoe_ops.experts import ExpertBank
from locmoe_ops.topology import ExpertPlacement
from pangu_sigma.inference.experts import BlockExperts, block_size, most_blocks

EXPERTS, WIDTH, INNER = 6, 4, 5
PLACEMENTS = {
    "all": ExpertPlacement(EXPERTS, 2, 1),
    "half": ExpertPlacement(EXPERTS, 2, 2),
}  # rows of a bank are not in the order of ids
LOADS = {
    "one expert": [3] * 10,
    "even": [0, 1, 2, 3, 4, 5, 0, 1, 2, 3],
    "uneven": [5, 5, 0, 5, 5, 1, 5, 0, 5, 5],
    "whole blocks": [2, 4, 2, 4, 2, 4, 2, 4, 0, 0],
}


@pytest.fixture(scope="module", params=list(PLACEMENTS))
def bank(request):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    bank = ExpertBank(PLACEMENTS[request.param].local_experts(0), WIDTH, INNER, "relu")
    generator = np.random.default_rng(0)
    for parameter in bank.trainable_params():
        parameter.set_data(Tensor(generator.standard_normal(parameter.shape).astype(np.float32)))
    return bank


@pytest.mark.parametrize("size", [1, 2, 4, 16])
@pytest.mark.parametrize("load", LOADS)
def test_every_row_goes_through_its_expert(bank, size, load):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    expert = LOADS[load]
    rows = np.random.default_rng(1).standard_normal((len(expert), WIDTH)).astype(np.float32)
    place = {number: row for row, number in enumerate(bank.local_experts)}
    held = np.array([place.get(number, len(place)) for number in LOADS[load]], np.int32)
    found = BlockExperts(len(place), len(expert), size)(Tensor(rows), Tensor(held), bank).asnumpy()
    w_in, b_in, w_out, b_out = (
        parameter.asnumpy().astype(np.float64) for parameter in (bank.w_in, bank.b_in, bank.w_out, bank.b_out)
    )
    for i, row in enumerate(held):
        expected = np.zeros(WIDTH)
        if row < len(place):
            expected = np.maximum(rows[i] @ w_in[row] + b_in[row, 0], 0.0) @ w_out[row] + b_out[row, 0]
        np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-5)  # sums of five float32 products


@pytest.mark.parametrize("assignments, experts, size", [(7, 3, 2), (5, 4, 3), (3, 6, 2), (6, 1, 4)])
def test_blocks_are_enough_for_any_load_and_no_more(assignments, experts, size):
    def loads(left, over):
        return [[left]] if over == 1 else [[n, *rest] for n in range(left + 1) for rest in loads(left - n, over - 1)]

    worst = max(sum(-(-count // size) for count in load) for load in loads(assignments, experts))
    assert most_blocks(assignments, experts, size) == worst


def test_work_follows_the_tokens():
    assert block_size(1, 640) == block_size(8, 640) == 1  # a few of many experts: theirs alone
    assert block_size(16, 4) == 0  # few experts, which most tokens' weights would be copied of anyway
    size = block_size(4096, 16)
    assert size and most_blocks(4096, 16, size) * size < 2 * 4096  # and not 16 times as many rows as tokens
