"""Rules by which selection biases follow the load, against tables and loops."""

import numpy as np
import pytest

from mindspore import Tensor

from helpers.routers import HIDDEN, batch, context_of
from locmoe_ops.errors import InputError
from locmoe_ops.routers.balance import PIDBias, PIDUpdate, QuantileBias, QuantileUpdate, SignUpdate, make_balance_bias
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.routers.selection_bias import LIMIT, BalanceBias, BalanceUpdate, LocalityBias, Sum, balance_biases
from locmoe_ops.topology import ExpertPlacement, Topology

pytestmark = pytest.mark.usefixtures("pynative_mode")

SHAPE = RoutingShape(12, 6, 2)  # two groups of three experts
YES, NO = Tensor(True), Tensor(False)


def as_row(*loads):
    return Tensor(np.array([loads], np.float32))


def test_sign_by_hand():
    """Megatron's expert bias: bias + rate * sign(mean - tokens), of each group its own mean (5, and 2)."""
    bias = BalanceBias(SHAPE)
    update = SignUpdate([bias], 0.1)
    assert float(update(as_row(10, 0, 5, 1, 2, 3), YES).asnumpy()) == pytest.approx(0.1)
    np.testing.assert_allclose(bias.balance_bias.asnumpy(), [[-0.1, 0.1, 0.0], [0.1, 0.0, -0.1]], atol=1e-7)
    update(as_row(14, 0, 1, 0, 0, 0), YES)  # a group without tokens stays
    np.testing.assert_allclose(bias.balance_bias.asnumpy(), [[-0.2, 0.2, 0.1], [0.1, 0.0, -0.1]], atol=1e-7)
    update(as_row(0, 9, 0, 9, 0, 0), NO)
    np.testing.assert_allclose(bias.balance_bias.asnumpy(), [[-0.2, 0.2, 0.1], [0.1, 0.0, -0.1]], atol=1e-7)
    for _ in range(6):
        update(as_row(14, 0, 1, 0, 0, 0), YES)
    assert bias.balance_bias.asnumpy()[0].tolist() == pytest.approx([-LIMIT, LIMIT, LIMIT])


def test_pid_by_hand():
    """rate 0.1, proportional 0.2, derivative 0.3; errors of the first group 1 - load / 4, clipped."""
    bias = PIDBias(SHAPE)
    update = PIDUpdate([bias], 0.1, 0.2, 0.3)
    update(as_row(6, 2, 4, 0, 0, 0), YES)  # errors -0.5, 0.5, 0; from 0
    np.testing.assert_allclose(bias.balance_bias.asnumpy()[0], [-0.3, 0.3, 0.0], atol=1e-7)
    update(as_row(4, 4, 4, 0, 0, 0), YES)  # errors 0: integrals stay, -0.05 and 0.05; derivative 0.5 * 0.3
    np.testing.assert_allclose(bias.balance_bias.asnumpy()[0], [0.1, -0.1, 0.0], atol=1e-7)
    update(as_row(12, 0, 0, 0, 0, 0), NO)  # a step that is skipped leaves all as it was
    np.testing.assert_allclose(bias.balance_bias.asnumpy()[0], [0.1, -0.1, 0.0], atol=1e-7)
    update(as_row(12, 0, 0, 0, 0, 0), YES)  # errors -2 -> -1, 1, 1: -0.15 - 0.2 - 0.3; 0.15 + 0.5; 0.1 + 0.5
    np.testing.assert_allclose(bias.balance_bias.asnumpy()[0], [-LIMIT, LIMIT, LIMIT], atol=1e-7)
    np.testing.assert_allclose(bias.balance_integral.asnumpy()[0], [-0.15, 0.15, 0.1], atol=1e-7)
    np.testing.assert_allclose(bias.balance_error.asnumpy()[0], [-1, 1, 1], atol=1e-7)


def test_pid_with_the_integral_alone_is_the_rule_of_balance_rate():
    rng, ours, theirs = np.random.default_rng(0), BalanceBias(SHAPE), PIDBias(SHAPE)
    plain, pid = BalanceUpdate([ours], 0.05), PIDUpdate([theirs], 0.05, 0.0, 0.0)
    for _ in range(20):
        load = as_row(*rng.multinomial(40, [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]))
        plain(load, YES)
        pid(load, YES)
    np.testing.assert_allclose(theirs.balance_bias.asnumpy(), ours.balance_bias.asnumpy(), atol=1e-6)


def required_by_loop(scores, bias, group, top_k, bins):
    """The histograms of `QuantileBias.required`, in float64: counts (G, n, B)."""
    groups, experts = bias.shape
    counts = np.zeros((groups, experts, bins))
    low, high = bias.min() - 1.0, bias.max() + 1.0
    for row, own in zip(scores, group):
        left_out = sorted(row + bias[own], reverse=True)[top_k]
        for j in range(experts):
            place = int(np.floor((left_out - row[j] - low) / (high - low) * bins))
            counts[own, j, min(max(place, 0), bins - 1)] += 1
    return counts


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_quantile_gives_each_expert_its_share(top_k):
    """One step by hand of a loop, and several: loads become even, which they were not."""
    rng, groups, experts, bins, tokens = np.random.default_rng(top_k), 2, 16, 1000, 4000
    scores = 1 / (1 + np.exp(-rng.normal(np.linspace(-1.0, 1.0, experts), 0.5, (tokens, experts))))
    scores, group = scores.astype(np.float32), rng.integers(0, groups, tokens).astype(np.int32)
    bias = QuantileBias(RoutingShape(16, groups * experts, groups, top_k), bins)
    update = QuantileUpdate([bias])

    def violation():
        biased = scores + bias.balance_bias.asnumpy()[group]
        chosen = np.argsort(-biased, 1)[:, :top_k] + group[:, None] * experts
        load = np.bincount(chosen.ravel(), minlength=groups * experts).reshape(groups, experts)
        return (load.max(1) / load.mean(1)).max() - 1.0  # MaxVio

    first = violation()
    for _ in range(6):
        before = bias.balance_bias.asnumpy().astype(np.float64)
        biased = scores + bias.balance_bias.asnumpy()[group]
        found = bias.required(Tensor(biased), Tensor(group)).asnumpy().reshape(groups, experts, bins)
        expected = required_by_loop(scores.astype(np.float64), before, group, top_k, bins)
        # What lies at the border of two bins, as the experts a_i are of at first, may fall to either, by rounding.
        up_to, wanted = found.cumsum(-1), expected.cumsum(-1)
        assert (up_to[..., :-1] <= wanted[..., 1:]).all() and (up_to[..., 1:] >= wanted[..., :-1]).all()
        assert found.sum() == tokens * experts
        update(Tensor(found.reshape(1, -1)), YES)
        for own in range(groups):
            rows = scores[group == own].astype(np.float64)
            left_out = np.sort(rows + before[own], 1)[:, -top_k - 1]
            exact = np.quantile(left_out[:, None] - rows, top_k / experts, axis=0)
            width = (np.ptp(before) + 2.0) / bins  # what a histogram can tell
            np.testing.assert_allclose(bias.balance_bias.asnumpy()[own], exact - exact.mean(), rtol=0, atol=2 * width)
    assert violation() < 0.1 < 0.5 < first
    assert np.abs(bias.balance_bias.asnumpy().mean(1)).max() < 1e-6


def test_quantile_leaves_alone_what_has_no_tokens_and_what_is_skipped():
    bias = QuantileBias(SHAPE, 10)
    bias.balance_bias.set_data(Tensor(np.array([[0.1, 0, -0.1], [0.2, 0, -0.2]], np.float32)))
    scores, group = Tensor(np.array([[0.9, 0.5, 0.1]] * 4, np.float32)), Tensor(np.zeros(4, np.int32))
    counts = bias.required(scores, group).reshape(1, -1)
    QuantileUpdate([bias])(counts, NO)
    np.testing.assert_allclose(bias.balance_bias.asnumpy(), [[0.1, 0, -0.1], [0.2, 0, -0.2]], atol=1e-7)
    QuantileUpdate([bias])(counts, YES)
    moved = bias.balance_bias.asnumpy()
    np.testing.assert_allclose(moved[1], [0.2, 0, -0.2], atol=1e-7)
    assert moved[0, 0] < moved[0, 1] < moved[0, 2]


@pytest.mark.parametrize("name", ["switch", "locmoe", "topk"])
@pytest.mark.parametrize("with_local_term", [False, True])
def test_routers_count_what_their_tokens_required(name, with_local_term):
    """The share of tokens that required less than an expert's bias is the share that chose it."""
    shape, bins, layout = RoutingShape(HIDDEN, 8, 2, 2), 4000, Topology(4, 2, 4)
    quantile = make_balance_bias("quantile", shape, bins)
    drawn = np.random.default_rng(1).normal(0, 0.05, (2, 4)).astype(np.float32)
    quantile.balance_bias.set_data(Tensor(drawn))
    bias = quantile
    if with_local_term:
        bias = Sum([LocalityBias("bias", shape, layout, ExpertPlacement(8, 2, 4), 0.2), quantile])
    router = make_router(context_of(name, shape, layout, selection_bias=bias))
    if name != "locmoe":
        weight = np.random.default_rng(3).standard_normal((8, HIDDEN)) * 0.2
        router.gate.weight.set_data(Tensor(weight.astype(np.float32)))
    assert router.required_bins == bins and balance_biases(router) == [quantile]
    x, group, home, seed = (Tensor(array) for array in batch(2))
    found = router(x, {"ids": group, "group": group, "home": home, "seed": seed})
    counts = found["required"].asnumpy().reshape(8, bins)
    width = (np.ptp(drawn) + 2) / bins
    edges = drawn.min() - 1 + np.arange(bins) * width
    load = np.bincount(found["expert"].asnumpy().ravel(), minlength=8)
    assert load.sum() == 2 * len(group) and counts.sum() == 4 * len(group)
    for row, own, chosen in zip(counts, drawn.ravel(), load):
        # The best expert that a token left out requires exactly its bias: it is in that bin, or in the one before.
        assert row[edges < own - 2 * width].sum() <= chosen <= row[edges < own + width].sum()


def test_nothing_to_balance_where_a_token_goes_to_all():
    with pytest.raises(InputError, match="top_k 3 is all experts of a group"):
        make_balance_bias("quantile", RoutingShape(12, 6, 2, 3), 100)


def test_a_router_that_makes_no_histograms_is_refused():
    """Of hash, which takes no bias at all, validation says it before."""
    quantile = make_balance_bias("quantile", RoutingShape(HIDDEN, 8), 10)
    with pytest.raises(InputError, match="hash.py: ROUTER's selection_biases hold 'quantile_balance'"):
        make_router(context_of("hash", RoutingShape(HIDDEN, 8), selection_bias=quantile, vocab_size=20))


@pytest.mark.parametrize(("kind", "made"), [("sign", BalanceBias), ("pid", PIDBias), ("quantile", QuantileBias)])
def test_biases_by_kind(kind, made):
    assert type(make_balance_bias(kind, SHAPE, 50)) is made
