import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.selection_bias import LIMIT, BalanceBias, BalanceUpdate, balance_biases

pytestmark = pytest.mark.usefixtures("graph_mode")

SHAPE = RoutingShape(12, 6, 2)  # two groups of three experts


def by_hand(bias, load, rate):
    moved = bias.copy()
    for group in range(len(load)):
        mean = max(load[group].sum() / 3, 1.0)
        for i in range(3):
            error = min(1.0, max(-1.0, 1.0 - load[group, i] / mean))
            moved[group, i] = min(LIMIT, max(-LIMIT, bias[group, i] + rate * error))
    return moved


def test_biases_follow_the_load_and_stay_within_the_limit():
    layers = [BalanceBias(SHAPE), BalanceBias(SHAPE)]
    update, rate, rng = BalanceUpdate(layers, 0.2), 0.2, np.random.default_rng(0)
    expected = [np.zeros((2, 3)), np.zeros((2, 3))]
    for _ in range(12):
        assigned = np.stack(
            [rng.multinomial(40, [0.7, 0.1, 0.2, 0, 0, 0]), rng.multinomial(9, [0, 0, 0, 0.3, 0.3, 0.4])]
        )
        largest = update(Tensor(assigned.astype(np.float32)), Tensor(True))
        expected = [by_hand(bias, load.reshape(2, 3), rate) for bias, load in zip(expected, assigned)]
        for layer, bias in zip(layers, expected):
            np.testing.assert_allclose(
                layer.balance_bias.asnumpy(), bias, rtol=0, atol=1e-6
            )  # twelve float32 additions below 1
        assert float(largest.asnumpy()) == pytest.approx(max(np.abs(bias).max() for bias in expected), abs=1e-6)
    assert np.abs(expected[0]).max() == LIMIT  # the limit was reached, so it was tested


def test_a_step_that_is_not_finite_moves_nothing():
    bias = BalanceBias(SHAPE)
    BalanceUpdate([bias], 0.1)(Tensor(np.array([[9, 0, 0, 0, 0, 0]], np.float32)), Tensor(False))
    assert not bias.balance_bias.asnumpy().any()


def test_an_overloaded_expert_loses_the_picks_that_were_close():
    bias = BalanceBias(SHAPE)
    bias.balance_bias.set_data(Tensor(np.array([[-0.1, 0, 0], [0, 0, 0.1]], np.float32)))
    scores = np.array([[0.4, 0.35, 0.25], [0.6, 0.2, 0.2], [0.35, 0.33, 0.32]], np.float32)
    found = bias(Tensor(scores), Tensor([0, 0, 0]), Tensor([0, 0, 1])).asnumpy()
    assert found.argmax(1).tolist() == [1, 0, 2]
    assert balance_biases(bias) == [bias]
