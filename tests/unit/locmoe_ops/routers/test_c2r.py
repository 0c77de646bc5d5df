"""C2R: further experts among the partners of the first; where its table comes from."""

from dataclasses import replace

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from helpers.routers import HIDDEN, batch, context_of, run
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes, router_spec
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.routing_trace import RoutingTrace, to_bytes
from locmoe_ops.topology import ExpertPlacement, Topology


@pytest.fixture(autouse=True)
def pynative_mode():
    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=before)


def test_a_tokens_experts_are_on_one_device_and_the_best_there():
    """x picks rows of the gate: of eight experts on two devices, 6 and then 1, 5 are the best ones."""
    router = make_router(context_of("c2r", RoutingShape(8, 8, 1, 3), num_devices=2))
    router.gate.weight.set_data(Tensor(np.eye(8, dtype=np.float32)))
    x, zeros = np.array([[0, 6, 1, 2, 3, 5, 7, 4], [9, 8, 0, 1, 7, 6, 5, 4]], np.float32), np.zeros(2, np.int32)
    found = run(router, [x, zeros, zeros, zeros])
    assert found["expert"].tolist() == [[6, 5, 7], [0, 1, 3]]
    odds = np.exp(x.astype(np.float64))
    expected = np.take_along_axis(odds / odds.sum(1, keepdims=True), found["expert"], 1)
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-5)  # a softmax in float32


def trace_file(folder, expert, num_experts=8, groups=1):
    """The routing trace of `expert` <int>[M, R, S, k]."""
    layers, rows, length, _ = expert.shape
    trace = RoutingTrace(
        token=np.zeros((rows, length), np.int32),
        domain=np.zeros(rows, np.int32),
        home=np.zeros(rows, np.int32),
        expert=expert.astype(np.int32),
        weight=np.ones(expert.shape, np.float32),
        node=np.zeros(num_experts, np.int32),
        num_groups=groups,
    )
    path = folder / "trace.safetensors"
    path.write_bytes(to_bytes(trace))
    return str(path)


@pytest.mark.parametrize(("layer", "partner"), [(0, 5), (1, 3)])
def test_partners_are_counted_in_a_trace_by_layer(tmp_path, layer, partner):
    """Expert 1 went with 5 twice and with 3 once in the first layer, the other way round in the second."""
    of_layers = [[[1, 5], [5, 1], [1, 3]], [[1, 3], [3, 1], [1, 5]]]
    path = trace_file(tmp_path, np.array(of_layers)[:, None])
    router = make_router(context_of("c2r", RoutingShape(8, 8, 1, 2), layer=layer, partners=1, table=path))
    router.gate.weight.set_data(Tensor(np.eye(8, dtype=np.float32)))
    x, zeros = np.array([[7, 9, 6, 1, 0, 1, 8, 5]], np.float32), np.zeros(1, np.int32)
    assert run(router, [x, zeros, zeros, zeros])["expert"].tolist() == [[1, partner]]


def test_without_constraints_it_is_top_k():
    shape, inputs = RoutingShape(HIDDEN, 8, 2, 3), batch(2)
    weight = Tensor(np.random.default_rng(3).standard_normal((8, HIDDEN)).astype(np.float32) * 0.2)
    results = []
    for name in ("c2r", "switch"):
        router = make_router(context_of(name, shape))
        router.gate.weight.set_data(weight)
        results.append(run(router, inputs))
    for name, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][name], err_msg=name)


@pytest.mark.parametrize(
    ("expert", "experts", "groups", "fragment"),
    [
        (
            np.zeros((1, 1, 2, 2)),
            8,
            1,
            "moe.num_groups 1, 1 sparse layers and moe.router.top_k 2; expected 8, 1, at least 2, and 2",
        ),
        (
            np.zeros((2, 1, 2, 1)),
            8,
            1,
            "2 sparse layers and moe.router.top_k 1; expected 8, 1, at least 2, and 2 or more",
        ),
        (np.zeros((2, 1, 2, 2)), 8, 2, "moe.num_groups 2"),
        (np.zeros((2, 1, 2, 2)), 4, 1, "is of moe.num_experts 4, moe.num_groups 1"),
    ],
    ids=["too few layers", "one expert a token", "other groups", "other experts"],
)
def test_traces_of_other_networks_are_refused(tmp_path, expert, experts, groups, fragment):
    path = trace_file(tmp_path, expert, experts, groups)
    with pytest.raises(InputError, match="moe.router.c2r.table") as caught:
        make_router(context_of("c2r", RoutingShape(8, 8, 1, 2), layer=1, partners=1, table=path))
    assert fragment in str(caught.value) and path in str(caught.value)


def test_a_table_that_a_checkpoint_brings_is_not_read(tmp_path):
    context = context_of("c2r", RoutingShape(8, 8, 1, 2), partners=1, table=str(tmp_path / "absent"))
    router = make_router(replace(context, reads_files=False))
    assert router.partners.shape == (8, 8)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="moe.router.c2r.table .*: cannot be read .no such file"):
        make_router(context_of("c2r", RoutingShape(8, 8, 1, 2), partners=1, table=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    ("options", "top_k", "fragment"),
    [
        ({"num_devices": 3}, 2, "num_devices (3) does not divide the 8 experts"),
        ({"num_devices": 4}, 3, "leaves 2 of the 8 experts of a group in each; expected at least 3"),
        ({"partners": 2}, 2, "partners is 2 with moe.router.c2r.table null"),
        ({"table": "x"}, 2, "table is x with moe.router.c2r.partners null"),
        ({"num_devices": 2, "partners": 4, "table": "x"}, 2, "partners is 4; expected 1 (moe.router.top_k 2 less"),
        ({"partners": 1, "table": "x"}, 3, "partners is 1; expected 2 (moe.router.top_k 3 less"),
    ],
)
def test_keys_that_do_not_fit(options, top_k, fragment):
    spec = router_spec("c2r")
    with pytest.raises(InputError) as caught:
        spec.check(spec.options(**options), RouterSizes(32, 8, 1, top_k))
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("devices", "layout", "fragment"),
    [
        (2, Topology(4, 4, 4), "experts 0 to 3 of group 0 are on 2 devices; expected 4 "),
        (4, Topology(4, 4, 4), None),
        (8, Topology(4, 4, 4), None),
        (1, Topology(4, 4, 1), None),
        (None, Topology(4, 4, 4), None),
    ],
)
def test_experts_of_a_stretch_are_on_one_device(devices, layout, fragment):
    spec = router_spec("c2r")
    arguments = spec.options(num_devices=devices), RouterSizes(32, 8), layout, ExpertPlacement(8, 1, layout.expert)
    if fragment is None:
        spec.check_placement(*arguments)
        return
    with pytest.raises(InputError, match="moe.router.c2r.num_devices is") as caught:
        spec.check_placement(*arguments)
    assert fragment in str(caught.value)
