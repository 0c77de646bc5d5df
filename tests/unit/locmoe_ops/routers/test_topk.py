"""Scores, choices, weights and losses of `topk`, `node_limited` and `moge` on tables that one can follow by hand.

The rules are those that Megatron-Core publishes (`topk_routing_with_score_function`, `group_limited_topk`,
`switch_load_balancing_loss_func`, `z_loss_func`) and torchtitan (`score_func`, `route_norm`, `route_scale`); the
numbers are worked out here. With the identity as the gate's weights, a token is its own row of gate values.
"""

import math

import numpy as np
import pytest

from mindspore import Tensor, ops

from helpers.routers import Opened, context_of
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes, router_spec
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.routers.selection_bias import BalanceBias
from locmoe_ops.topology import ExpertPlacement, Topology

pytestmark = pytest.mark.usefixtures("pynative_mode")

LOGIT = {s: math.log(s / (1 - s)) for s in (0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.6, 0.7, 0.75, 0.9)}


def route(name, values, top_k, bias=None, layout=None, placement=None, **options):
    """What the router makes of rows of gate values <float>[T, n]: expert, weight, aux_loss."""
    values = np.asarray(values, np.float32)
    tokens, experts = values.shape
    shape, layout = RoutingShape(experts, experts, 1, top_k), layout or Topology(1, 1)
    selection_bias = None
    if bias is not None:
        selection_bias = BalanceBias(shape)
        selection_bias.balance_bias.set_data(Tensor(np.array([bias], np.float32)))
    options = {**options, "aux_loss_weight": options.get("aux_loss_weight", 0.0)}
    router = make_router(context_of(name, shape, layout, placement, selection_bias=selection_bias, **options))
    router.gate.weight.set_data(Tensor(np.eye(experts, dtype=np.float32)))
    zeros = Tensor(np.zeros(tokens, np.int32))
    expert, weight, aux_loss, _ = Opened(router)(Tensor(values), zeros, zeros, zeros)
    return expert.asnumpy(), weight.asnumpy(), float(aux_loss.asnumpy())


def softmax_row(*shares):
    return [math.log(share) for share in shares]


def square_root_row(*scores):
    return [math.log(math.expm1(score**2)) for score in scores]  # sqrt(log(1 + exp v)) = score


TABLES = {
    # name: (gate values, top k, bias, options, experts, weights)
    "softmax": (softmax_row(0.1, 0.2, 0.3, 0.4), 2, None, {}, [3, 2], [0.4, 0.3]),
    "softmax, renormalised as torchtitan's route_norm with route_scale 2": (
        softmax_row(0.1, 0.2, 0.3, 0.4),
        2,
        None,
        {"normalise_weights": True, "weight_scale": 2.0},
        [3, 2],
        [8 / 7, 6 / 7],
    ),
    "sigmoid, top 1: the score itself": ([LOGIT[s] for s in (0.5, 0.75, 0.25, 0.9)], 1, None, {}, [3], [0.9]),
    # Biased: 0.8, 0.75, 0.85, 0.9. Weights 0.9 and 0.25 of 1.15, times 2.5: the bias is in the choice alone.
    "sigmoid, with a bias, renormalised and scaled (DeepSeek-V3)": (
        [LOGIT[s] for s in (0.5, 0.75, 0.25, 0.9)],
        2,
        [0.3, 0.0, 0.6, 0.0],
        {"normalise_weights": True, "weight_scale": 2.5},
        [3, 2],
        [2.25 / 1.15, 0.625 / 1.15],
    ),
    "square root of softplus (DeepSeek-V4)": (
        square_root_row(1.0, 2.0, 0.5, 0.3),
        2,
        None,
        {"score_function": "sqrt_softplus", "normalise_weights": True, "weight_scale": 1.5},
        [1, 0],
        [1.0, 0.5],
    ),
    "square root of softplus, far below 0": (
        [-200.0, -300.0, -40.0, -50.0],
        1,
        None,
        {"score_function": "sqrt_softplus"},
        [2],
        [math.exp(-20.0)],
    ),
    "equal scores go to the lower index": ([0.0, 1.0, 1.0, 1.0], 2, None, {}, [1, 2], [0.7310586, 0.7310586]),
}


@pytest.mark.parametrize("name", TABLES)
def test_topk_by_hand(name):
    values, top_k, bias, options, experts, weights = TABLES[name]
    function = "softmax" if name.startswith("softmax") else "sigmoid"
    expert, weight, _ = route("topk", [values], top_k, bias, **{"score_function": function, **options})
    assert expert.tolist() == [experts]
    # float32 logits of order 4 are rounded by 2e-7, which is the relative error of their exponentials, as of a sum; on
    # some processors that of -40 is off by 1e-5 (tests/unit/locmoe_ops/test_functions.py).
    np.testing.assert_allclose(weight, [weights], rtol=1e-5 if "far below" in name else 3e-6, atol=0)


EIGHT = [LOGIT[s] for s in (0.9, 0.1, 0.6, 0.5, 0.2, 0.3, 0.7, 0.05)]  # two experts on each of four nodes
FOUR_NODES = {"layout": Topology(4, 1, 4), "placement": ExpertPlacement(8, 1, 4)}


@pytest.mark.parametrize(
    ("top_k", "max_nodes", "experts"),
    [
        # Nodes by their two best, as k / M = 2: 1.0, 1.1, 0.5, 0.75. Expert 6, the second best of all, is closed.
        (4, 2, [0, 2, 3, 1]),
        # By their best, k / M = 1: 0.9, 0.6, 0.3, 0.7.
        (2, 2, [0, 6]),
        (2, 1, [2, 3]),
        (1, 1, [0]),
        # k / M = 1.5 counts two: nodes 1 and 0.
        (3, 2, [0, 2, 3]),
        (4, 4, [0, 6, 2, 3]),
        (4, 9, [0, 6, 2, 3]),
    ],
)
def test_node_limited_by_hand(top_k, max_nodes, experts):
    expert, weight, _ = route(
        "node_limited", [EIGHT], top_k, score_function="sigmoid", max_nodes=max_nodes, **FOUR_NODES
    )
    assert expert.tolist() == [experts]
    np.testing.assert_allclose(weight, [[1 / (1 + math.exp(-EIGHT[i])) for i in experts]], rtol=3e-6)


def test_a_bias_counts_in_the_score_of_a_node():
    bias = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]  # node 3: 0.7 + 0.55
    expert, _, _ = route("node_limited", [EIGHT], 2, bias, score_function="sigmoid", max_nodes=1, **FOUR_NODES)
    assert expert.tolist() == [[6, 7]]


@pytest.mark.parametrize(
    ("top_k", "device_groups", "experts"),
    [
        (4, None, [0, 2, 5, 6]),
        (8, None, [0, 2, 5, 6, 1, 3, 4, 7]),
        (2, 2, [0, 6]),
        (4, 2, [0, 6, 2, 5]),
        (2, 1, [0, 6]),
    ],
)
def test_grouped_by_hand(top_k, device_groups, experts):
    """The best of every device group (four devices of two experts, or as asked), then the second best."""
    expert, weight, _ = route("moge", [EIGHT], top_k, device_groups=device_groups, **FOUR_NODES)
    assert expert.tolist() == [experts]
    shares = np.exp(EIGHT) / np.exp(EIGHT).sum()  # one softmax over all eight
    np.testing.assert_allclose(weight, [shares[experts]], rtol=3e-6)


@pytest.mark.parametrize("name", ["topk", "node_limited", "moge"])
def test_8_of_64(name):
    """Against a sort of all scores, on 40 tokens: what is open to a token differs, what is done with it does not."""
    scores = np.random.default_rng(5).uniform(0.05, 0.95, (40, 64))
    values = np.log(scores / (1 - scores)).astype(np.float32)
    layout = {"layout": Topology(8, 1, 8), "placement": ExpertPlacement(64, 1, 8)}
    options = {"node_limited": {"max_nodes": 4}}.get(name, {})
    expert, weight, _ = route(
        name, values, 8, score_function="sigmoid", normalise_weights=True, weight_scale=2.5, **layout, **options
    )
    for t in range(40):
        of_device = scores[t].reshape(8, 8)
        allowed = range(64)
        if name == "node_limited":
            best = np.argsort(-np.sort(of_device, 1)[:, -2:].sum(1))[:4]
            allowed = [i for i in range(64) if i // 8 in best]
        expected = sorted(allowed, key=lambda i: -scores[t, i])[:8]
        if name == "moge":
            expected = [8 * device + int(row.argmax()) for device, row in enumerate(of_device)]
        assert expert[t].tolist() == expected
        np.testing.assert_allclose(weight[t], 2.5 * scores[t, expected] / scores[t, expected].sum(), rtol=3e-6)


def test_load_balancing_loss_by_hand():
    """Megatron's E * sum_i (tokens of i) (sum of p_i) / (k T^2), here of shares of sigmoid scores; two tokens."""
    rows = [[LOGIT[0.5], LOGIT[0.25], LOGIT[0.25]], [LOGIT[0.25], LOGIT[0.5], LOGIT[0.25]]]
    _, _, loss = route("topk", rows, 1, score_function="sigmoid", aux_loss_weight=1.0)
    # Shares (0.5, 0.25, 0.25) and (0.25, 0.5, 0.25); one token each for experts 0 and 1: 3 (0.75 + 0.75) / 4.
    assert loss == pytest.approx(1.125, rel=1e-6)


def test_sequence_loss_by_hand_counts_scores_without_the_bias():
    """Two sequences of two tokens, k = 1: in the first both tokens favour expert 0, in the second one each."""
    first, second = softmax_row(0.6, 0.4), softmax_row(0.3, 0.7)
    rows = [first, first, first, second]
    options = {"sequence_loss_weight": 0.5, "sequence_length": 2, "score_function": "softmax"}
    # n sum f P: 2 (1 * 0.6) = 1.2; and 2 (0.5 * 0.45 + 0.5 * 0.55) = 1.
    for bias in (None, [-0.4, 0.4]):
        expert, _, loss = route("topk", rows, 1, bias, **options)
        assert loss == pytest.approx(0.5 * 1.1, rel=1e-6)
    assert expert.ravel().tolist() == [1, 1, 1, 1]  # which the bias would have counted
    *_, whole = route("topk", rows, 1, **{**options, "sequence_length": None})
    assert whole == pytest.approx(0.5 * 2 * (0.75 * 0.525 + 0.25 * 0.475), rel=1e-6)


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
def test_z_loss_by_hand(function):
    """mean of logsumexp^2, of the gate's values whatever the scores: (log 4)^2 and (log 4 + 3)^2."""
    rows = [[0.0] * 4, [3.0] * 4]
    *_, loss = route("topk", rows, 1, score_function=function, z_loss_weight=0.1)
    assert loss == pytest.approx(0.1 * (math.log(4) ** 2 + (math.log(4) + 3) ** 2) / 2, rel=1e-6)


def test_scores_that_vanish_have_finite_gradients():
    shape = RoutingShape(4, 4, 1, 2)
    router = make_router(context_of("topk", shape, score_function="sqrt_softplus", normalise_weights=True))
    router.gate.weight.set_data(Tensor(np.eye(4, dtype=np.float32)))
    opened, zeros = Opened(router), Tensor(np.zeros(2, np.int32))
    gradient = ops.grad(lambda x: opened(x, zeros, zeros, zeros)[1].sum())(
        Tensor(np.array([[-300.0, -400.0, -500.0, -600.0], [300.0, -300.0, 0.0, 1.0]], np.float32))
    )
    assert np.isfinite(gradient.asnumpy()).all()


@pytest.mark.parametrize(
    ("name", "top_k", "options", "fragment"),
    [
        ("node_limited", 4, {"max_nodes": 1}, "max_nodes is 1, and so many nodes hold 2 experts .*top_k .4."),
        ("node_limited", 1, {"node_groups": 3}, "node_groups .3. does not divide the 8 experts"),
        ("moge", 3, {}, "top_k .3. with moe.router.type moge: .* each of 4 device groups; expected a multiple of 4"),
        ("moge", 3, {"device_groups": 3}, "device_groups .3. does not divide the 8 experts"),
    ],
)
def test_what_does_not_fit_the_placement_is_refused(name, top_k, options, fragment):
    with pytest.raises(InputError, match=fragment):
        route(name, [EIGHT], top_k, **FOUR_NODES, **options)


@pytest.mark.parametrize(("name", "options"), [("node_limited", {"max_nodes": 2}), ("moge", {})])
def test_what_is_pinned_picks_the_same_on_one_rank(name, options):
    spec, values = router_spec(name), np.random.default_rng(2).normal(size=(30, 8))
    sizes, placed = RouterSizes(8, 8, 1, 4), route(name, values, 4, **FOUR_NODES, **options)
    pinned = spec.pin(spec.options(**options), sizes, FOUR_NODES["layout"], FOUR_NODES["placement"])
    found = route(name, values, 4, **vars(pinned))
    assert found[0].tolist() == placed[0].tolist() != route(name, values, 4, **options)[0].tolist()


def test_there_is_no_second_expert():
    with pytest.raises(InputError, match="a second expert for overflow has no such weight"):
        make_router(context_of("topk", RoutingShape(4, 4))).offer_second(None)
