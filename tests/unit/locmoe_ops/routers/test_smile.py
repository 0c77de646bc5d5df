"""SMILE's two levels: hand-computed losses, and the router written anew as a user's file."""

from pathlib import Path

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

import helpers
from helpers.routers import HIDDEN, batch, context_of, run
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes, add_router_file, remove_router, router_spec
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.topology import ExpertPlacement, Topology


@pytest.fixture(autouse=True)
def pynative_mode():
    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=before)


def smile(shape, **options):
    router = make_router(context_of("smile", shape, **options))
    rows = router.gate.weight.shape[0]
    weight = np.random.default_rng(3).standard_normal((rows, HIDDEN)).astype(np.float32) * 0.2
    router.gate.weight.set_data(Tensor(weight))
    return router


def test_losses_of_both_levels_by_hand():
    """Two nodes of two experts; x picks rows of the gate. Four tokens: p of node 0 is s, and so is q of expert 0, with
    s = 1 / (1 + exp(-2)), or 1 - s.

    Tokens (node, expert): (0, 0), (0, 0), (0, 1), (1, 0). f of node 0 is 3/4, P of it (3 s + (1 - s)) / 4; the same for
    the experts.
    """
    router = make_router(
        context_of("smile", RoutingShape(4, 4), num_nodes=2, node_loss_weight=1.0, expert_loss_weight=10.0)
    )
    router.gate.weight.set_data(Tensor(np.eye(4, dtype=np.float32)))
    x = np.array([[2, 0, 2, 0], [2, 0, 2, 0], [2, 0, 0, 2], [0, 2, 2, 0]], np.float32)
    zeros = np.zeros(4, np.int32)
    found = run(router, [x, zeros, zeros, zeros])
    s = 1.0 / (1.0 + np.exp(-2.0))
    assert found["expert"].ravel().tolist() == [0, 0, 1, 2]
    np.testing.assert_allclose(found["weight"].ravel(), s * s, rtol=1e-6)
    mean = (3.0 * s + 1.0 - s) / 4.0
    of_level = 2.0 * (0.75 * mean + 0.25 * (1.0 - mean))
    assert float(found["aux_loss"]) == pytest.approx(11.0 * of_level, rel=1e-6)


@pytest.mark.parametrize(("groups", "nodes", "top_k"), [(1, 2, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)])
def test_the_users_file_routes_as_the_package_does(groups, nodes, top_k):
    """`helpers/two_level.py` is the same router by docs/routers.md alone: another way to write it, the same numbers."""
    file = Path(helpers.__file__).with_name("two_level.py")
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) < 60
    shape, inputs = RoutingShape(HIDDEN, 8, groups, top_k), batch(groups)
    router = smile(shape, num_nodes=nodes)
    add_router_file(str(file))
    try:
        own = make_router(context_of("two_level", shape, nodes=nodes))
        assert (
            own.gate.weight.shape
            == router_spec("two_level")
            .cost(router_spec("two_level").options(nodes=nodes), RouterSizes(HIDDEN, 8, groups, top_k))
            .weights["gate.weight"]
        )
        own.gate.weight.set_data(router.gate.weight)
        for name, array in run(own, inputs).items():
            np.testing.assert_allclose(run(router, inputs)[name], array, rtol=1e-6, err_msg=name)
    finally:
        remove_router("two_level")


@pytest.mark.parametrize(
    ("nodes", "groups", "layout", "kind", "fragment"),
    [
        (1, 2, Topology(4, 2, 4), "interleaved", "experts 0 to 3 of group 0 are on 2 nodes; expected 2 "),
        (2, 2, Topology(4, 1, 4), "interleaved", "experts 0 to 1 of group 0 are on 2 nodes; expected 4 "),
        (1, 1, Topology(4, 1, 4), "node_grouped", "experts 0 to 7 of group 0 are on 4 nodes"),
        (2, 2, Topology(4, 2, 4), "interleaved", None),
        (4, 2, Topology(4, 2, 4), "interleaved", None),  # two stretches on each node
        (1, 2, Topology(4, 2, 4), "node_grouped", None),  # each group on a node of its own
        (1, 2, Topology(4, 2, 2), "interleaved", None),  # expert parallelism inside a node
    ],
)
def test_experts_of_a_stretch_are_on_one_node(nodes, groups, layout, kind, fragment):
    spec, sizes = router_spec("smile"), RouterSizes(32, 8, groups)
    arguments = spec.options(num_nodes=nodes), sizes, layout, ExpertPlacement(8, groups, layout.expert, kind)
    if fragment is None:
        spec.check_placement(*arguments)
        return
    with pytest.raises(InputError, match="moe.router.smile.num_nodes is") as caught:
        spec.check_placement(*arguments)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("options", "top_k", "fragment"),
    [
        ({"num_nodes": 3}, 1, "num_nodes (3) does not divide the 4 experts of a group"),
        ({"num_nodes": 4}, 2, "leaves 1 of the 4 experts of a group in each; expected at least 2"),
    ],
)
def test_sizes_that_do_not_fit(options, top_k, fragment):
    spec = router_spec("smile")
    with pytest.raises(InputError) as caught:
        spec.check(spec.options(**options), RouterSizes(32, 8, 2, top_k))
    assert fragment in str(caught.value)
