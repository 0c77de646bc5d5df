"""Gate values around a running mean."""

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.centring import CentreUpdate, ValueMean, value_means

pytestmark = pytest.mark.usefixtures("graph_mode")

SHAPE = RoutingShape(12, 6, 2)  # two groups of three experts
TOKENS = 40


def drawn(rng, groups):
    """Values whose means differ from expert to expert, and the tokens' groups."""
    group = rng.integers(0, groups, TOKENS).astype(np.int32)
    offset = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    return (offset[group] + 0.1 * rng.standard_normal((TOKENS, 3))).astype(np.float32), group


@pytest.mark.parametrize("top_k", [1, 2])
def test_means_follow_the_values_group_by_group(top_k):
    """Against a loop over tokens. Group 1 has no token in the first step, and what does not depend on a token's value
    is gone when the means have arrived.
    """
    mean, rng, expected = ValueMean(SHAPE), np.random.default_rng(0), np.zeros((2, 3))
    update = CentreUpdate([mean], 0.5, top_k)
    for step in range(12):
        values, group = drawn(rng, 1 if step == 0 else 2)
        sums = mean.sums(Tensor(values), Tensor(group))
        # how a token's k choices fall does not matter, only their number
        assigned = np.zeros(6, np.float32)
        for token, g in enumerate(group):
            for k in range(top_k):
                assigned[3 * g + (token + k) % 3] += 1
        largest = update(sums.expand_dims(0), Tensor(assigned[None]), Tensor(True))
        for g in range(2):
            own = [value for value, of in zip(values, group) if of == g]
            if own:
                expected[g] += 0.5 * (sum(own) / len(own) - expected[g])
        np.testing.assert_allclose(mean.value_mean.asnumpy(), expected, rtol=0, atol=1e-5)  # float32 sums of 40
        assert float(largest.asnumpy()) == pytest.approx(np.abs(expected).max(), abs=1e-5)
        if step == 0:
            assert not mean.value_mean.asnumpy()[1].any()
    centred = mean(Tensor(values), Tensor(group)).asnumpy()
    np.testing.assert_allclose(centred, values - expected[group], rtol=0, atol=1e-5)
    # one argmax for all of a group before, a third each after
    assert {tuple(np.bincount(values[group == g].argmax(1), minlength=3) > 0) for g in (0, 1)} == {
        (True, False, False),
        (False, True, False),
    }
    assert np.bincount(centred.argmax(1), minlength=3).min() > TOKENS / 6


@pytest.mark.parametrize("value", [5.0, np.nan, np.inf])
def test_a_step_that_is_not_finite_moves_nothing(value):
    mean = ValueMean(SHAPE)
    CentreUpdate([mean], 1.0, 1)(
        Tensor(np.full((1, 6), value, np.float32)), Tensor(np.ones((1, 6), np.float32)), Tensor(False)
    )
    assert not mean.value_mean.asnumpy().any()
    assert value_means(mean) == [mean]
