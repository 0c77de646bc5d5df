"""Experts by blocks against a loop over tokens."""

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.dispatch.geometry import DispatchSetup
from locmoe_ops.experts import ExpertBank
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.inference.experts import BlockSlots, InferenceDispatcher, block_size, most_blocks

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


@pytest.mark.parametrize("size", [0, 1, 2, 4, 16])
@pytest.mark.parametrize("load", LOADS)
def test_every_token_gets_what_its_experts_held_here_make_of_it(bank, size, load):
    """Of two experts a token the second is another than the first; it has a weight of its own."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    generator = np.random.default_rng(1)
    for expert in ([[first] for first in LOADS[load]], [[first, (first + 2) % EXPERTS] for first in LOADS[load]]):
        chosen = np.array(expert, np.int32)
        tokens, top_k = chosen.shape
        x = generator.standard_normal((tokens, WIDTH)).astype(np.float32)
        scale = generator.random((tokens, top_k)).astype(np.float32)
        slots = BlockSlots(bank.local_experts, EXPERTS, tokens, top_k, size)
        setup = DispatchSetup(Topology(1, 1), ExpertPlacement(EXPERTS, 1, 1), tokens, top_k)
        dispatcher = InferenceDispatcher(slots, setup, create_collectives("local", Topology(1, 1), 0), "test")
        inputs = Tensor(x), Tensor(chosen), Tensor(scale), Tensor(scale)
        found = dispatcher.forward(*inputs, bank)[0].asnumpy()
        expected = [
            sum(weight * _by_hand(bank, row, number) for weight, number in zip(weights, numbers))
            for row, weights, numbers in zip(x, scale, expert)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # sums of five float32 products


def _by_hand(bank, row, number):
    """<float64>[d]: what expert `number` makes of one token; 0 where it is not held here."""
    w_in, b_in, w_out, b_out = (
        parameter.asnumpy().astype(np.float64) for parameter in (bank.w_in, bank.b_in, bank.w_out, bank.b_out)
    )
    if number not in bank.local_experts:
        return np.zeros(WIDTH)
    place = bank.local_experts.index(number)
    return np.maximum(row @ w_in[place] + b_in[place, 0], 0.0) @ w_out[place] + b_out[place, 0]


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
