import numpy as np
import pytest

from helpers.routers import LAYOUT, context_of
from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.routers.hash import HashRouter
from locmoe_ops.routers.second import SecondExpert
from locmoe_ops.topology import ExpertPlacement

pytestmark = pytest.mark.compiles

pytestmark = pytest.mark.usefixtures("graph_mode")

TOKENS = 40


@pytest.mark.parametrize("groups, top_k", [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2)])
def test_second_expert_and_its_gradient_match_a_loop(pullback, groups, top_k):
    """8 experts, 4 on each node; with 4 groups a node has one of each and often none left."""
    rng, shape, placement = (
        np.random.default_rng(groups),
        RoutingShape(8, 8, groups, top_k),
        ExpertPlacement(8, groups, 4),
    )
    n = shape.per_group
    probabilities = rng.dirichlet(np.ones(n), TOKENS).astype(np.float32)
    probabilities[:5] = np.float32(1 / n)  # ties
    probabilities[5:9] = np.eye(n)[0]  # all others are 0
    choice = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    home, group = (rng.integers(0, limit, TOKENS).astype(np.int32) for limit in (4, groups))
    expert, weight, gradient = np.full(TOKENS, 8), np.zeros(TOKENS), np.zeros((TOKENS, n))
    dy = rng.standard_normal(TOKENS).astype(np.float32)
    for t in range(TOKENS):
        for i in range(n):
            here = placement.ep_index_of(group[t] * n + i) // 2 == home[t] // 2
            if here and i not in choice[t] and (expert[t] == 8 or probabilities[t, i] > weight[t]):
                expert[t], weight[t], gradient[t] = group[t] * n + i, probabilities[t, i], dy[t] * np.eye(n)[i]
    found, (of_probabilities,), _ = pullback(
        SecondExpert(shape, LAYOUT, placement), [choice, probabilities, home, group], [np.zeros(TOKENS, np.int32), dy]
    )
    assert found[0].tolist() == expert.tolist()
    np.testing.assert_array_equal(found[1], weight.astype(np.float32))  # copies
    np.testing.assert_array_equal(of_probabilities, gradient.astype(np.float32))


def test_routers_without_a_weight_for_another_expert_refuse():
    second = SecondExpert(RoutingShape(8, 4, 1, 1), LAYOUT, ExpertPlacement(4, 1, 4))
    with pytest.raises(InputError, match="HashRouter has no second experts"):
        HashRouter(RoutingShape(8, 4), np.zeros((1, 3), np.int32)).offer_second(second)
    with pytest.raises(InputError, match="GShard router weighs its two experts against each other"):
        make_router(context_of("gshard", RoutingShape(8, 4, 1, 2))).offer_second(second)
