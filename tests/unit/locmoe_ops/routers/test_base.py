import numpy as np
import pytest

from mindspore import Tensor

from helpers.routers import context_of
from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import (
    Router,
    RoutingShape,
    RoutingStatistics,
    count_statistics_groups,
    local_experts_of_nodes,
    one_hot,
)
from locmoe_ops.topology import ExpertPlacement, Topology

TOKENS, EXPERTS, GROUPS = 30, 6, 2
LAYOUT = Topology(world_size=6, ranks_per_node=2, expert=6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_groups": 4}, "num_groups 4 does not divide num_experts 6; expected a divisor"),
        ({"num_groups": 2, "top_k": 4}, "top_k 4 is out of range; expected 1 to 3, the experts of a group"),
        ({"top_k": 0}, "top_k 0 is out of range; expected 1 to 6"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RoutingShape(8, EXPERTS, **options)


def test_one_hot_of_an_index_out_of_range_is_a_row_of_zeros():
    found = one_hot(Tensor(np.array([2, 3, 0, -1], np.int32)), 3).asnumpy()
    assert found.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_a_router_must_select():
    tokens = {"group": Tensor(np.zeros(3, np.int32))}
    with pytest.raises(NotImplementedError):
        Router(RoutingShape(8, EXPERTS)).construct(Tensor(np.zeros((3, 8), np.float32)), tokens)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("scope", ["rank", "node", "global"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_sums_of_statistics_groups_match_a_loop_over_tokens(pullback, scope, top_k):
    rng = np.random.default_rng(top_k)
    group = rng.integers(0, GROUPS, TOKENS).astype(np.int32)
    home = rng.choice([0, 2, 3, 5], TOKENS).astype(np.int32)  # ranks 1 and 4 are home to nobody
    within = rng.permuted(np.tile(np.arange(3), (TOKENS, 1)), axis=1)[:, :top_k]
    expert = (within + 3 * group[:, None]).astype(np.int32)
    probabilities = rng.dirichlet(np.ones(3), TOKENS).astype(np.float32)

    part = {"rank": home, "node": home // 2, "global": 0 * home}[scope]
    counts, sums = np.zeros((2, count_statistics_groups(scope, LAYOUT), EXPERTS))
    for t in range(TOKENS):
        sums[part[t], 3 * group[t] : 3 * group[t] + 3] += probabilities[t]
        for e in expert[t]:
            counts[part[t], e] += 1 / top_k

    context = context_of("switch", RoutingShape(8, EXPERTS, GROUPS, top_k), LAYOUT, statistics=scope)
    weights = rng.standard_normal((2, *counts.shape)).astype(np.float32)
    found, (gradient,), _ = pullback(RoutingStatistics(context), [expert, probabilities, group, home], list(weights))
    np.testing.assert_array_equal(found[0], counts)  # multiples of 1/2 are exact
    np.testing.assert_allclose(found[1], sums, rtol=1e-6)
    expected = np.stack([weights[1][part[t], 3 * group[t] : 3 * group[t] + 3] for t in range(TOKENS)])
    np.testing.assert_array_equal(gradient, expected)  # a copy: the matrices hold 0 and 1 alone


def test_unknown_scope_is_told_with_the_choices():
    with pytest.raises(InputError, match="found 'world', expected one of rank, node, expert_parallel, global"):
        count_statistics_groups("world", LAYOUT)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("interleaved", [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]]),
        ("node_grouped", [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]),
    ],
)
def test_local_experts_of_three_nodes(kind, expected):
    assert local_experts_of_nodes(LAYOUT, ExpertPlacement(EXPERTS, GROUPS, 6, kind)).tolist() == expected
