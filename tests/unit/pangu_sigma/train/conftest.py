"""Small networks (those of the model's tests), and parameters without a network around them."""

from typing import Any, Callable, Dict, List

import numpy as np
import pytest

import mindspore as ms
from mindspore import Parameter, Tensor

# Names as the network gives them, in the order of gradients: matrices, biases and norms; then the same of experts.
SHAPES = {
    "embedding.word": (5, 4),
    "blocks.0.attention.project.weight": (4, 4),
    "blocks.0.ffn_norm.gamma": (4,),
    "blocks.0.attention.project.bias": (4,),
    "blocks.1.feed_forward.experts.w_in": (2, 4, 3),
    "blocks.1.feed_forward.experts.b_in": (2, 1, 3),
}


@pytest.fixture(autouse=True)
def graph_mode() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)


def _random_arrays(seed: int, scale: float = 1.0) -> List[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype(np.float32) for shape in SHAPES.values()]


@pytest.fixture(scope="session")
def random_arrays() -> Callable[..., List[np.ndarray]]:
    """`random_arrays(seed, scale)`: an array for each of SHAPES."""
    return _random_arrays


@pytest.fixture(scope="session")
def make_parameters() -> Callable[[], List[Parameter]]:
    return lambda: [Parameter(Tensor(np.zeros(shape, np.float32)), name=name) for name, shape in SHAPES.items()]


class NumpyAdam:
    """Adam with bias correction and decoupled weight decay (arXiv 1711.05101, Algorithm 2) in float64.

    Matrices decay, biases and norms do not; experts have an epsilon of their own.
    """

    def __init__(self, options: Any, values: List[np.ndarray]) -> None:
        self.options, self.count = options, 0
        self.values = [value.astype(np.float64) for value in values]
        self.first = [np.zeros(value.shape) for value in values]
        self.second = [np.zeros(value.shape) for value in values]
        self.steps = [np.zeros(value.shape) for value in values]  # last change of each value

    def update(self, gradients: List[np.ndarray], learning_rate: float) -> None:
        options = self.options
        self.count += 1
        for i, (name, gradient) in enumerate(zip(SHAPES, gradients)):
            gradient = gradient.astype(np.float64)
            self.first[i] = options.beta1 * self.first[i] + (1.0 - options.beta1) * gradient
            self.second[i] = options.beta2 * self.second[i] + (1.0 - options.beta2) * gradient**2
            mean = self.first[i] / (1.0 - options.beta1**self.count)
            variance = self.second[i] / (1.0 - options.beta2**self.count)
            epsilon = options.expert_epsilon if "experts" in name else options.epsilon
            decay = 0.0 if name.endswith(("bias", "gamma", "b_in")) else options.weight_decay
            self.steps[i] = -learning_rate * (mean / (np.sqrt(variance) + epsilon) + decay * self.values[i])
            self.values[i] = self.values[i] + self.steps[i]


@pytest.fixture(scope="session")
def numpy_adam() -> type:
    return NumpyAdam


@pytest.fixture(scope="session")
def arrays_of() -> Callable[[List[Parameter]], Dict[str, np.ndarray]]:
    return lambda parameters: {parameter.name: parameter.asnumpy().copy() for parameter in parameters}
