"""Gradients of two linear maps whose sums start in the backward pass: two ranks that hold the same, so twice as
much.
"""

import numpy as np
import pytest

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from locmoe_ops.topology import Topology
from pangu_sigma.model.layers import Linear
from pangu_sigma.train.gradient_overlap import GradientOverlap, OverlappedGradients


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, WEIGHTS, FACTORS = random(0, 5, 3), {"first": random(1, 4, 3), "second": random(2, 2, 4)}, random(3, 5, 2)


class TwoMaps(nn.Cell):
    """The sum of the factors times `second(first(x))`."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Linear(3, 4, has_bias=False), Linear(4, 2, has_bias=False)
        self.factors = Tensor(FACTORS)
        for name, weight in WEIGHTS.items():
            getattr(self, name).weight.set_data(Tensor(weight))

    def construct(self, x):
        return (self.second(self.first(x)) * self.factors).sum()


class Gradients(nn.Cell):
    """Of the weights, in the order of the backward pass, summed over ranks where an overlap is given to wait for."""

    def __init__(self, network, weights, overlap):
        super().__init__(auto_prefix=False)
        self.differentiate = ops.grad(network, None, ParameterTuple(weights))
        self.overlapped = OverlappedGradients(overlap)
        self.waits = overlap is not None

    def construct(self, x):
        gradients = self.differentiate(x)
        return self.overlapped(gradients, x) if self.waits else gradients


def expected():
    """Of the second map, then of the first."""
    return [FACTORS.T @ (X @ WEIGHTS["first"].T), (FACTORS @ WEIGHTS["second"]).T @ X]


@pytest.fixture
def twin(networks):
    return networks.TwinCollectives(0, Topology(2, 2))


def check(found, arrays):
    assert len(found) == len(arrays)
    for tensor, array in zip(found, arrays):
        np.testing.assert_allclose(tensor.asnumpy(), array, rtol=1e-5, atol=1e-5)  # sums of 5 and 4 float32 products


def test_gradients_are_summed_in_the_backward_pass(twin):
    network = TwoMaps()
    overlap = GradientOverlap(network, twin)
    assert [parameter.name for parameter in overlap.parameters] == ["second.weight", "first.weight"]
    overlap.send(True)
    check(Gradients(network, overlap.parameters, overlap)(Tensor(X)), [2 * array for array in expected()])


def test_what_earlier_micro_batches_left_is_summed_too(twin):
    network = TwoMaps()
    before = {f"{name}.weight": random(4, *weight.shape) for name, weight in WEIGHTS.items()}
    accumulators = {name: Parameter(Tensor(array), name=f"gradient.{name}") for name, array in before.items()}
    overlap = GradientOverlap(network, twin, accumulators)
    overlap.send(True)
    found = Gradients(network, overlap.carriers, overlap)(Tensor(X))
    check(found, [2 * (before[p.name] + array) for p, array in zip(overlap.parameters, expected())])


def test_switched_off_gradients_are_this_ranks_own(twin):
    network = TwoMaps()
    overlap = GradientOverlap(network, twin)
    overlap.send(True)
    overlap.send(False)
    check(Gradients(network, overlap.parameters, None)(Tensor(X)), expected())


def test_without_overlap_nothing_is_waited_for():
    overlapped = OverlappedGradients(None)
    assert overlapped.count == 0 and overlapped((Tensor(X),), Tensor(X)) == ()
