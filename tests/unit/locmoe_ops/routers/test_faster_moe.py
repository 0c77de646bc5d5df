"""The cap on what leaves a node, switched off and on again."""

import numpy as np
import pytest

from mindspore import Tensor

from helpers.routers import HIDDEN, Opened, batch, context_of
from locmoe_ops.routers.base import RoutingShape, make_router

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_cap_can_be_switched_off_without_another_graph(top_k):
    shape, weight = RoutingShape(HIDDEN, 8, 1, top_k), np.random.default_rng(3).standard_normal((8, HIDDEN)) * 0.2

    def router(name, **options):
        made = make_router(context_of(name, shape, **options))
        made.gate.weight.set_data(Tensor(weight.astype(np.float32)))
        return Opened(made)

    inputs = [Tensor(array) for array in batch(1)]
    capped = router("faster_moe", max_remote_fraction=0.2, rules_change=True)
    fixed = router("faster_moe", max_remote_fraction=0.2)(*inputs)[0].asnumpy()
    free = router("switch")(*inputs)[0].asnumpy()  # the same gate without a cap
    assert (fixed != free).any()
    for on, expected in ((True, fixed), (False, free), (True, fixed)):
        capped.router.set_locality_rules(on)
        np.testing.assert_array_equal(capped(*inputs)[0].asnumpy(), expected)
    assert len(capped.compile_cache) == 1
