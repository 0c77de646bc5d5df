import numpy as np
import pytest
from scipy import special

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from pangu_sigma.model.loss import SplitCrossEntropy, TokenCrossEntropy

TOKENS, WORDS = 6, 11


class WeightedLoss(nn.Cell):
    """The weighted sum of token losses as a function of the logits, with its gradient."""

    def __init__(self, cross_entropy):
        super().__init__()
        self.cross_entropy = cross_entropy
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
    cell = WeightedLoss(TokenCrossEntropy())
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


@pytest.mark.parametrize(
    "logits",
    [random_logits(1.0), random_logits(30.0), extreme_logits(), 3.0 * extreme_logits()],
    ids=["small", "large", "extreme", "beyond float16"],
)
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
    losses, _ = evaluate(
        np.full((TOKENS, WORDS), 5.0, np.float32), np.arange(TOKENS, dtype=np.int32), np.ones(TOKENS, np.float32)
    )
    np.testing.assert_allclose(losses, np.log(WORDS), rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_logits_are_not_hidden(evaluate, broken):
    """A loss scale can only react to an overflow that reaches the gradient."""
    logits = random_logits(1.0)
    logits[2, 4] = broken
    losses, gradient = evaluate(logits, np.zeros(TOKENS, np.int32), np.ones(TOKENS, np.float32))
    assert not np.isfinite(losses[2]) and not np.isfinite(gradient[2]).all()
    assert np.isfinite(np.delete(losses, 2)).all() and np.isfinite(np.delete(gradient, 2, 0)).all()


# ---- words split over ranks

PARTS = 3  # of 12 words


class RankAmongOthers(nn.Cell):
    """An all-gather in which the other ranks' numbers are given: <float32>[3 * PARTS, T] <- <float32>[3, T]."""

    def __init__(self, rank):
        super().__init__()
        self.numbers = Parameter(Tensor(np.zeros((3 * PARTS, TOKENS), np.float32)), name="numbers", requires_grad=False)
        self.rank = rank

    def construct(self, own):
        parts = ()
        for rank in range(PARTS):
            parts = parts + ((own,) if rank == self.rank else (self.numbers[3 * rank : 3 * rank + 3],))
        return ops.concat(parts, 0)


class Group:
    """What the cell asks of a tensor-parallel group."""

    def __init__(self, rank):
        self.size, self.index, self.gather = PARTS, rank, RankAmongOthers(rank)

    def all_gather(self, tag):
        return self.gather


@pytest.fixture(scope="module")
def evaluate_parts():
    """Of every rank, losses and the gradient of its own columns; the others' numbers come from NumPy."""
    ms.set_context(mode=ms.GRAPH_MODE)
    groups = [Group(rank) for rank in range(PARTS)]
    cells = [WeightedLoss(SplitCrossEntropy(group, local_vocab_size=4)) for group in groups]

    def evaluate(logits, targets, weights):
        results = []
        for group, cell, columns in zip(groups, cells, np.split(logits, PARTS, 1)):
            group.gather.numbers.set_data(Tensor(numbers_of_all(logits, targets)))
            results.append([output.asnumpy() for output in cell(Tensor(columns), Tensor(targets), Tensor(weights))])
        return results

    return evaluate


def numbers_of_all(logits, targets):
    """<float32>[3 * PARTS, T]: of each rank, a token's largest logit, sum of exp(logit - largest), and its target's or
    0.
    """
    found = []
    for part, columns in enumerate(np.split(logits, PARTS, 1)):
        at_target = np.where(targets // 4 == part, columns[np.arange(TOKENS), targets % 4], 0.0)
        with np.errstate(invalid="ignore"):
            found += [columns.max(1), np.exp(columns - columns.max(1, keepdims=True)).sum(1), at_target]
    return np.array(found, np.float32)


def twelve_words(logits):
    return np.concatenate((logits, logits[:, :1] - 1.0), 1)


@pytest.mark.parametrize(
    "logits", [random_logits(1.0), random_logits(30.0), extreme_logits()], ids=["small", "large", "extreme"]
)
def test_words_shared_out_over_ranks(evaluate_parts, logits, numpy_model):
    """Every rank finds the loss over all words, and its own columns of the gradient."""
    logits, targets = twelve_words(logits), np.array([3, 0, 0, 10, 7, 1], np.int32)
    weights = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 1.0], np.float32)
    probabilities = special.softmax(logits.astype(np.float64), axis=1)
    expected = np.split(weights[:, None] * (probabilities - np.eye(12)[targets]), PARTS, 1)
    for (losses, gradient), columns in zip(evaluate_parts(logits, targets, weights), expected):
        # As without a group: float32, of the loss itself or of a difference of logits.
        np.testing.assert_allclose(losses, numpy_model.token_losses(logits, targets), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(gradient, columns, atol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_logits_of_one_rank_show_on_all(evaluate_parts, broken):
    logits = twelve_words(random_logits(1.0))
    logits[2, 4] = broken  # rank 1
    for losses, gradient in evaluate_parts(logits, np.zeros(TOKENS, np.int32), np.ones(TOKENS, np.float32)):
        assert not np.isfinite(losses[2]) and not np.isfinite(gradient[2]).all()
        assert np.isfinite(np.delete(losses, 2)).all() and np.isfinite(np.delete(gradient, 2, 0)).all()
