import numpy as np
import pytest

from mindspore import Tensor, nn

from locmoe_ops.routers.losses import ClosedLosses, coarser, load_balancing_loss, locality_loss, log_localised

pytestmark = pytest.mark.usefixtures("graph_mode")

SMOOTHING = 0.1


class Balancing(nn.Cell):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def construct(self, counts, probabilities):
        return load_balancing_loss(counts, probabilities, self.groups)


class Locality(nn.Cell):
    def __init__(self, groups, local, smoothing=SMOOTHING):
        super().__init__()
        self.groups = groups
        self.smoothing = smoothing
        self.local = Tensor(np.asarray(local, np.float32))

    def construct(self, probabilities):
        return locality_loss(probabilities, log_localised(self.local, self.groups, self.smoothing))


def sums_of_tokens(statistics_groups=3, groups=2, per_group=4, seed=0):
    """Counts and probability sums <float32>[S, E] of tokens of all statistics and expert groups, but of one pair."""
    rng = np.random.default_rng(seed)
    counts, probabilities = np.zeros((2, statistics_groups, groups, per_group))
    for s in range(statistics_groups):
        for g in range(groups):
            for _ in range(0 if (s, g) == (1, 1) else rng.integers(1, 20)):
                p = rng.dirichlet(np.ones(per_group))
                counts[s, g, p.argmax()] += 1
                probabilities[s, g] += p
    return [array.reshape(statistics_groups, -1).astype(np.float32) for array in (counts, probabilities)]


def test_load_balancing_matches_a_loop_over_cells(pullback):
    counts, probabilities = sums_of_tokens()
    (found,), (no_gradient, gradient), _ = pullback(Balancing(2), [counts, probabilities], [np.float32(1)])
    total, expected, slopes = counts.sum(), 0.0, np.zeros(counts.shape)
    for s in range(3):
        for g in range(2):
            experts = slice(4 * g, 4 * g + 4)
            tokens = counts[s, experts].sum()
            if tokens:
                fraction, mean = counts[s, experts] / tokens, probabilities[s, experts] / tokens
                expected += tokens / total * 4 * np.dot(fraction, mean)
                slopes[s, experts] = 4 * fraction / total
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # a few float32 roundings
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6)
    assert not no_gradient.any(), "counts are constants"


@pytest.mark.parametrize("groups", [1, 2])
def test_load_balancing_is_1_when_balanced_and_n_when_collapsed(groups):
    even = np.full((2, 8), 3, np.float32)
    assert Balancing(groups)(Tensor(even), Tensor(even)).asnumpy() == 1.0
    collapsed = np.zeros((1, 8), np.float32)
    collapsed[0, :: 8 // groups] = 5
    assert Balancing(groups)(Tensor(collapsed), Tensor(collapsed)).asnumpy() == 8 // groups


LOCAL = np.array(
    [[1, 1, 0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
)  # no group fits all nodes


def localised(local, smoothing=SMOOTHING):
    share = local / local.sum() if local.any() else np.full(len(local), 1 / len(local))
    return (1 - smoothing) * share + smoothing / len(local)


def test_locality_matches_a_loop_over_nodes_and_groups(pullback):
    _, probabilities = sums_of_tokens()
    (found,), (gradient,), _ = pullback(Locality(2, LOCAL), [probabilities], [np.float32(1)])
    total, expected, slopes = probabilities.sum(), 0.0, np.zeros((3, 8))
    for node in range(3):
        for group in range(2):
            experts = slice(4 * group, 4 * group + 4)
            tokens = probabilities[node, experts].sum()
            if tokens:
                current, target = probabilities[node, experts] / tokens, localised(LOCAL[node, experts])
                expected += tokens / total * np.sum(current * np.log(current / target))
                slopes[node, experts] = (np.log(current / target) + 1) / total
    np.testing.assert_allclose(found, expected, rtol=2e-6)  # logarithms of either sign add up
    # Probabilities of a token sum to 1, so a constant along a group's experts has no effect; the empty cell is left
    # out.
    by_cell = (gradient - slopes).reshape(6, 4)[[0, 1, 2, 4, 5]]
    np.testing.assert_allclose(by_cell - by_cell.mean(1, keepdims=True), 0, atol=1e-6 * np.abs(slopes).max())
    assert np.isfinite(gradient).all()


def test_locality_vanishes_exactly_at_its_target():
    target = np.stack([np.concatenate([localised(LOCAL[node, :4]), localised(LOCAL[node, 4:])]) for node in range(3)])
    at_target = Locality(2, LOCAL)(Tensor((7 * target).astype(np.float32))).asnumpy()
    uniform = Locality(2, np.zeros((3, 8)))(Tensor(np.ones((3, 8), np.float32))).asnumpy()
    assert abs(at_target) < 1e-6 and abs(uniform) < 1e-6  # roundings of terms below 1


def test_locality_of_a_node_that_always_leaves_is_the_logarithm_of_its_smoothed_share(pullback):
    probabilities = np.zeros((1, 4), np.float32)
    probabilities[0, 3] = 5
    (found,), (gradient,), _ = pullback(Locality(1, [[1, 1, 0, 0]]), [probabilities], [np.float32(1)])
    np.testing.assert_allclose(found, np.log(1 / (SMOOTHING / 4)), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_no_tokens_at_all_give_zero_losses():
    nothing = Tensor(np.zeros((2, 8), np.float32))
    assert Balancing(2)(nothing, nothing).asnumpy() == 0 == Locality(2, np.ones((2, 8)))(nothing).asnumpy()


@pytest.mark.parametrize(("finer", "sets", "nodes"), [(1, 1, 1), (4, 1, 4), (4, 4, 4), (4, 4, 2), (4, 2, 4)])
def test_both_losses_in_closed_form(pullback, finer, sets, nodes):
    """As the two functions and their derivatives, up to a constant along a group's experts, which no probability
    sees.
    """
    counts, probabilities = sums_of_tokens(finer, seed=3)
    local = (np.random.default_rng(4).random((nodes, 8)) < 0.5).astype(np.float32)
    log_target = log_localised(Tensor(local), 2, SMOOTHING)
    cotangents = [np.float32(0.7), np.float32(-1.3)]

    class Apart(nn.Cell):
        def construct(self, counts, sums):
            aux = load_balancing_loss(coarser(counts, sets), coarser(sums, sets), 2)
            return aux, locality_loss(coarser(sums, nodes), log_target)

    class Closed(nn.Cell):
        def __init__(self):
            super().__init__()
            self.both = ClosedLosses(sets, log_target, 0.5, 2.0)

        def construct(self, counts, sums):
            aux, locality, _, _ = self.both(counts, sums)
            return aux * 2.0, locality * 0.5

    values, (_, gradient), _ = pullback(Closed(), [counts, probabilities], cotangents)
    expected, (_, slopes), _ = pullback(Apart(), [counts, probabilities], cotangents)
    np.testing.assert_allclose(values, expected, rtol=3e-6)  # some float32 roundings; logarithms of either sign add up
    used = counts.reshape(finer, 2, 4).sum(2) > 0
    difference = (gradient - slopes).reshape(finer, 2, 4)[used]
    np.testing.assert_allclose(difference - difference.mean(-1, keepdims=True), 0, atol=3e-6 * np.abs(slopes).max())
