import numpy as np
import pytest

from mindspore import Parameter, Tensor, nn

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.dispatch.flat import FlatDispatcher
from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities
from locmoe_ops.topology import ExpertPlacement, Topology

pytestmark = pytest.mark.usefixtures("graph_mode")

TOKENS, HIDDEN, EXPERTS = 17, 5, 6
PLACEMENT = ExpertPlacement(EXPERTS, 3, 1)  # interleaved: positions differ from ids


class Factors(nn.Cell):
    """Experts that multiply each place of their buffers by a factor of its own: its gradient tells who was there."""

    def __init__(self, factor):
        super().__init__()
        self.factor = Parameter(Tensor(factor), name="factor")

    def construct(self, buffers):
        return buffers * self.factor


class Scaled(nn.Cell):
    def __init__(self, top_k, capacity, priority, factor):
        super().__init__()
        collectives = create_collectives("local", Topology(1, 1), 0)
        options = DispatchOptions(drop_priority=priority)
        setup = DispatchSetup(collectives.topology, PLACEMENT, TOKENS, top_k, FixedCapacities(capacity), options)
        self.dispatcher = FlatDispatcher(collectives, setup, "t")
        self.experts = Factors(factor)

    def construct(self, x, expert, weight):
        y, _ = self.dispatcher.forward(x, expert, weight, weight, self.experts)
        return y


@pytest.mark.parametrize("priority", ["position", "weight"])
@pytest.mark.parametrize("top_k, capacity", [(1, 2), (2, 3), (2, TOKENS)])
def test_outputs_and_gradients_match_a_loop(pullback, priority, top_k, capacity):
    rng = np.random.default_rng(top_k)
    x, dy = rng.standard_normal((2, TOKENS, HIDDEN)).astype(np.float32)
    expert = rng.permuted(np.tile(np.arange(EXPERTS), (TOKENS, 1)), axis=1)[:, :top_k].astype(np.int32)
    weight = rng.uniform(size=(TOKENS, top_k)).astype(np.float32)
    factor = rng.standard_normal((EXPERTS, capacity, HIDDEN)).astype(np.float32)

    places = [(t, k) for k in range(top_k) for t in range(TOKENS)]
    if priority == "weight":
        places.sort(key=lambda place: -weight[place])
    y, taken = np.zeros(x.shape), [0] * EXPERTS
    dx, dweight, dfactor = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(factor.shape)
    for t, k in places:
        held, slot = PLACEMENT.position_of[expert[t, k]], taken[PLACEMENT.position_of[expert[t, k]]]
        if slot < capacity:
            taken[held] += 1
            y[t] += weight[t, k] * x[t] * factor[held, slot]
            dx[t] += weight[t, k] * dy[t] * factor[held, slot]
            dweight[t, k] = np.dot(dy[t], x[t] * factor[held, slot])
            dfactor[held, slot] = weight[t, k] * dy[t] * x[t]
    cell = Scaled(top_k, capacity, priority, factor)
    found, gradients, of_parameters = pullback(cell, [x, expert, weight], [dy], cell.trainable_params())
    for array, expected in zip([found[0], *gradients, *of_parameters], [y, dx, dweight, dfactor]):
        np.testing.assert_allclose(array, expected, rtol=0, atol=2e-6)  # float32, sums of at most 5 products of order 1
