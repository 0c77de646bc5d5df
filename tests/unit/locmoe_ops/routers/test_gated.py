"""What gated routers share, shown on Switch's, which adds only jitter and a loss, and on LocMoE's for its ties."""

import numpy as np
import pytest

from mindspore import Tensor

from helpers.routers import HIDDEN, OUTPUTS, TOKENS, batch, context_of, expected_choice, run
from locmoe_ops.random import SeededUniform
from locmoe_ops.routers.base import RoutingShape, make_router

pytestmark = pytest.mark.usefixtures("graph_mode")


def switch(shape, weight, **options):
    router = make_router(context_of("switch", shape, **options))
    router.gate.weight.set_data(Tensor(weight))
    return router


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_switch_takes_the_largest_probabilities_of_the_group(groups, top_k):
    weight = np.random.default_rng(3).standard_normal((4 * groups, HIDDEN)).astype(np.float32) * 0.2
    inputs = batch(groups)
    found = run(switch(RoutingShape(HIDDEN, 4 * groups, groups, top_k), weight), inputs)
    values = np.einsum("td,tnd->tn", inputs[0].astype(np.float64), weight.reshape(groups, 4, HIDDEN)[inputs[1]])
    expert, probability = expected_choice(values, top_k)
    assert np.array_equal(found["expert"], expert + 4 * inputs[1][:, None])
    np.testing.assert_allclose(found["weight"], probability, rtol=0, atol=1e-6)  # logits of order 10 in float32
    assert found["locality_loss"] == 0


def test_equal_probabilities_go_to_the_lower_expert():
    shape = RoutingShape(HIDDEN, 4, 1, top_k=3)
    inputs = batch(1)
    inputs[0][:] = -1.0  # all values negative: ReLU makes them equal
    found = run(make_router(context_of("locmoe", shape)), inputs)
    assert found["expert"].tolist() == [[0, 1, 2]] * TOKENS and np.all(found["weight"] == 0.25)
    inputs[0][:, 12:18] = 3.0  # expert 2 first, then equal ones
    found = run(make_router(context_of("locmoe", shape)), inputs)
    assert found["expert"].tolist() == [[2, 0, 1]] * TOKENS


def test_router_computes_in_float32_for_half_precision_tokens():
    inputs = batch(1)
    shape, weight = RoutingShape(HIDDEN, 8), np.random.default_rng(3).standard_normal((8, HIDDEN)).astype(np.float32)
    half = inputs[0].astype(np.float16)
    from_half = run(switch(shape, weight), [half, *inputs[1:]])
    from_single = run(switch(shape, weight), [half.astype(np.float32), *inputs[1:]])
    assert from_half["weight"].dtype == np.float32
    assert all(from_half[name].tobytes() == from_single[name].tobytes() for name in OUTPUTS)


@pytest.mark.parametrize("training", [True, False])
def test_jitter_scales_the_gate_s_input_in_training_alone(training):
    shape, weight = RoutingShape(HIDDEN, 8), np.random.default_rng(3).standard_normal((8, HIDDEN)).astype(np.float32)
    inputs = batch(1)
    jittered = switch(shape, weight, jitter=0.3).set_train(training)
    uniform = SeededUniform(HIDDEN, 5)(Tensor(inputs[3])).asnumpy()
    factor = 1 + 0.3 * (2 * uniform - 1) if training else np.ones_like(uniform)
    assert not training or (factor.min() < 0.75 and factor.max() > 1.25)
    found = run(jittered, inputs)
    expert, probability = expected_choice((inputs[0] * factor).astype(np.float64) @ weight.T.astype(np.float64), 1)
    assert np.array_equal(found["expert"], expert)
    np.testing.assert_allclose(found["weight"], probability, rtol=0, atol=3e-6)  # logits of order 20 in float32
