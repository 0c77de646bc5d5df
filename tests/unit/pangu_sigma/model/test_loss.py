import numpy as np
import pytest
from scipy import special

import mindspore as ms
from mindspore import Tensor, nn, ops

from pangu_sigma.model.loss import TokenCrossEntropy

TOKENS, WORDS = 6, 11


class WeightedLoss(nn.Cell):
    """The weighted sum of token losses as a function of the logits, with its gradient."""

    def __init__(self):
        super().__init__()
        self.cross_entropy = TokenCrossEntropy()
        self.differentiate = ops.value_and_grad(self.weighted, 0, None, has_aux=True)

    def weighted(self, logits, targets, weights):
        losses, _ = self.cross_entropy(logits, targets)
        return (losses * weights).sum(), losses

    def construct(self, logits, targets, weights):
        (_, losses), gradient = self.differentiate(logits, targets, weights)
        return losses, gradient


@pytest.fixture(scope="module")
def evaluate():
    ms.set_context(mode=ms.GRAPH_MODE)
    cell = WeightedLoss()
    return lambda *inputs: [output.asnumpy() for output in cell(*(Tensor(x) for x in inputs))]


def random_logits(scale):
    return (scale * np.random.default_rng(0).standard_normal((TOKENS, WORDS))).astype(np.float32)


def extreme_logits():
    logits = np.zeros((TOKENS, WORDS), np.float32)
    logits[0, 3] = 1e4  # certain, and right where the target is 3
    logits[1, 5] = 1e4
    logits[2, 0] = -1e4
    logits[3] = 1e4
    logits[4] = -1e4
    logits[5, :2] = 1e4, -1e4
    return logits


@pytest.mark.parametrize("logits", [random_logits(1.0), random_logits(30.0), extreme_logits(), 3.0 * extreme_logits()],
                         ids=["small", "large", "extreme", "beyond float16"])
def test_loss_and_gradient_match_the_closed_form(evaluate, numpy_model, logits):
    targets = np.array([3, 0, 0, 10, 7, 1], np.int32)
    weights = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 1.0], np.float32)
    losses, gradient = evaluate(logits, targets, weights)
    # float32: of the loss itself, or of a difference of logits of order 1.
    np.testing.assert_allclose(losses, numpy_model.token_losses(logits, targets), rtol=1e-6, atol=1e-6)
    probabilities = special.softmax(logits.astype(np.float64), axis=1)
    expected = weights[:, None] * (probabilities - np.eye(WORDS)[targets])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert losses.dtype == gradient.dtype == np.float32


def test_even_scores_cost_the_logarithm_of_the_vocabulary(evaluate):
    losses, _ = evaluate(np.full((TOKENS, WORDS), 5.0, np.float32), np.arange(TOKENS, dtype=np.int32),
                         np.ones(TOKENS, np.float32))
    np.testing.assert_allclose(losses, np.log(WORDS), rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_logits_are_not_hidden(evaluate, broken):
    """A loss scale can only react to an overflow that reaches the gradient."""
    logits = random_logits(1.0)
    logits[2, 4] = broken
    losses, gradient = evaluate(logits, np.zeros(TOKENS, np.int32), np.ones(TOKENS, np.float32))
    assert not np.isfinite(losses[2]) and not np.isfinite(gradient[2]).all()
    assert np.isfinite(np.delete(losses, 2)).all() and np.isfinite(np.delete(gradient, 2, 0)).all()
