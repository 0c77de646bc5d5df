"""Expert-token resonance: tokens choose early in training, experts late; in evaluation tokens."""

import numpy as np
import pytest

from mindspore import Tensor

from helpers.routers import HIDDEN, LAYOUT, Opened, batch, context_of, expected_choice
from locmoe_ops.reference.competition import expert_choice
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.routers.etr import set_expert_choice

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures("graph_mode")]

SHAPE, TEMPERATURE = RoutingShape(HIDDEN, 8, 2, 2), 0.1


def affinities(x):
    """Cosines of tokens and means over blocks of features, over the temperature."""
    means = x.reshape(len(x), 4, -1).sum(-1)
    return means / np.sqrt(HIDDEN / 4) / np.linalg.norm(x, axis=1, keepdims=True) / TEMPERATURE


def test_experts_choose_late_in_training_and_without_another_graph():
    x, group, home, seed = inputs = batch(2)
    opened = Opened(make_router(context_of("etr", SHAPE, expert_choice_start_step=3, locality_loss_weight=0.0)))
    opened.set_train()
    by_tokens, weights = expected_choice(affinities(x.astype(np.float64)), 2)
    probabilities = np.exp(affinities(x.astype(np.float64)))
    probabilities /= probabilities.sum(1, keepdims=True)
    by_experts, absent = expert_choice(probabilities, home * 2 + group, 2)
    assert 0.05 < absent.mean() < 0.5
    late = np.where(absent, 8, by_experts + 4 * group[:, None])
    late_weights = np.where(absent, 0.0, np.take_along_axis(probabilities, by_experts, 1))
    losses = set()
    for value, expert, weight in (
        (0.0, by_tokens + 4 * group[:, None], weights),
        (1.0, late, late_weights),
        (0.0, by_tokens + 4 * group[:, None], weights),
    ):
        set_expert_choice(opened, value)
        found = [output.asnumpy() for output in opened(*map(Tensor, inputs))]
        np.testing.assert_array_equal(found[0], expert)
        np.testing.assert_allclose(found[1], weight, atol=1e-6)  # a softmax in float32
        losses.add(float(found[2]))
    assert len(losses) == 1 and len(opened.compile_cache) == 1  # the loss counts what tokens would choose


@pytest.mark.parametrize("train", [False, True])
def test_tokens_choose_in_evaluation_whatever_the_step(train):
    x, group, home, seed = inputs = batch(2)
    opened = Opened(make_router(context_of("etr", SHAPE, layout=LAYOUT, expert_choice_start_step=0)))
    opened.set_train(train)
    found = opened(*map(Tensor, inputs))[0].asnumpy()
    by_tokens = expected_choice(affinities(x.astype(np.float64)), 2)[0] + 4 * group[:, None]
    assert (found == by_tokens).all() == (not train)
