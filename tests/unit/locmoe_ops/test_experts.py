import numpy as np
import pytest
from scipy import special

import mindspore as ms
from mindspore import Tensor

from locmoe_ops.experts import ExpertBank, ExpertKernels

pytestmark = pytest.mark.usefixtures("graph_mode")

HIDDEN, INNER, SLOTS = 6, 9, 5
NAMES = ("w_in", "b_in", "w_out", "b_out")


def bank_with_values(experts=3, **options):
    bank = ExpertBank(tuple(range(experts)), HIDDEN, INNER, **options)
    rng = np.random.default_rng(1)
    values = {name: rng.standard_normal(getattr(bank, name).shape).astype(np.float32) for name in NAMES}
    for name, value in values.items():
        getattr(bank, name).set_data(Tensor(value))
    return bank, {name: value.astype(np.float64) for name, value in values.items()}


def loop(x, w_in, b_in, w_out, b_out, dy):
    """Outputs and gradients (x, then parameters), one expert and one slot at a time; the activation is exact GeLU."""
    x, y = x.astype(np.float64), np.zeros(x.shape)
    dx, *parameters = [np.zeros(a.shape) for a in (x, w_in, b_in, w_out, b_out)]
    for expert in range(len(x)):
        for slot, row in enumerate(x[expert]):
            hidden = row @ w_in[expert] + b_in[expert, 0]
            slope = special.ndtr(hidden) + hidden * np.exp(-(hidden**2) / 2) / np.sqrt(2 * np.pi)
            inner = hidden * special.ndtr(hidden)
            y[expert, slot] = inner @ w_out[expert] + b_out[expert, 0]
            dhidden = (w_out[expert] @ dy[expert, slot]) * slope
            dx[expert, slot] = w_in[expert] @ dhidden
            parts = (np.outer(row, dhidden), dhidden, np.outer(inner, dy[expert, slot]), dy[expert, slot])
            for total, part in zip(parameters, parts):
                total[expert] += part
    return y, [dx, *parameters]


def test_outputs_and_gradients_match_a_loop(pullback):
    bank, values = bank_with_values()
    x, dy = np.random.default_rng(2).standard_normal((2, 3, SLOTS, HIDDEN)).astype(np.float32)
    (found,), of_input, of_parameters = pullback(bank, [x], [dy], [getattr(bank, name) for name in NAMES])
    expected, gradients = loop(x, **values, dy=dy)
    # float32 sums of at most 9 products of numbers of order 1.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(of_input + of_parameters, gradients):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=2e-5)


def test_half_precision_computes_in_half_and_keeps_float32_parameters(pullback):
    bank, values = bank_with_values(kernels=ExpertKernels(ms.float16))
    x = np.random.default_rng(2).standard_normal((3, SLOTS, HIDDEN)).astype(np.float16)
    (found,), _, of_parameters = pullback(bank, [x], [np.ones_like(x)], [getattr(bank, name) for name in NAMES])
    expected, _ = loop(x, **values, dy=np.ones(x.shape))
    assert found.dtype == np.float16
    # Half precision rounds to 5e-4; the inner sums reach about 10.
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=2e-2)
    assert all(gradient.dtype == np.float32 for gradient in of_parameters)


def test_an_expert_starts_the_same_wherever_it_is_held():
    together, apart = ExpertBank((0, 1, 2, 3), HIDDEN, INNER), ExpertBank((3, 1), HIDDEN, INNER)
    for bank in (together, apart):
        bank.initialise(seed=5)
    for name in NAMES:
        assert np.array_equal(getattr(apart, name).asnumpy(), getattr(together, name).asnumpy()[[3, 1]])


def test_initial_weights_are_normal_with_the_given_deviations():
    bank = ExpertBank((0, 1), 60, 70)
    bank.initialise(seed=5, std_in=0.5, std_out=0.1)
    for weight, std in ((bank.w_in, 0.5), (bank.w_out, 0.1)):
        # The deviation of 8400 draws is known to 0.8 %, the mean to 1.1 % of it: five of each.
        assert abs(weight.asnumpy().std() / std - 1) < 0.04 and abs(weight.asnumpy().mean() / std) < 0.055
    assert not bank.b_in.asnumpy().any() and not bank.b_out.asnumpy().any()
    drawn = [matrix.ravel()[:100].tolist() for weight in (bank.w_in, bank.w_out) for matrix in weight.asnumpy()]
    assert len(set(map(tuple, drawn))) == 4
