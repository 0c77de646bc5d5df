import numpy as np
import pytest
from scipy import special

import mindspore as ms
from mindspore import Tensor

from helpers.routers import LAYOUT, context_of
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.dispatch.flat import FlatDispatcher
from locmoe_ops.dispatch.geometry import DispatchSetup, FixedCapacities
from locmoe_ops.errors import InputError
from locmoe_ops.experts import ExpertBank
from locmoe_ops.moe import MoEFeedForward, MultiLevelRouting, build_moe, check_token_ids
from locmoe_ops.reference.layer import moe_layer
from locmoe_ops.reference.spec import LayerParameters, LayerSpec, RankTokens
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.routers.hash import HashRouter
from locmoe_ops.topology import ExpertPlacement, Topology, local_experts_table

pytestmark = pytest.mark.usefixtures("graph_mode")

TOKENS, HIDDEN, INNER, EXPERTS = 12, 6, 7, 4
# LAYOUT: two nodes of two ranks; experts 0 and 1 are on node 0, the others on node 1
IDS = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 0], np.int32)  # id i goes to expert i; expert 3 gets nothing
HOME = np.array([3, 1, 2, 0] * 3, np.int32)
X = np.random.default_rng(0).standard_normal((TOKENS, HIDDEN)).astype(np.float32)


def build(router=None, capacity=2, evaluation_capacity=None, **options):
    collectives, placement = create_collectives("local", Topology(1, 1), 0), ExpertPlacement(EXPERTS, 1, 1)
    router = router or HashRouter(RoutingShape(HIDDEN, EXPERTS), np.arange(EXPERTS).reshape(1, -1))
    setups = [
        DispatchSetup(collectives.topology, placement, TOKENS, router.top_k, FixedCapacities(c or 0))
        for c in (capacity, evaluation_capacity)
    ]
    slots = [FlatDispatcher(collectives, one, f"{one.capacities.uniform}") for one in setups]
    if evaluation_capacity is None:
        slots[1] = None
    experts = ExpertBank(tuple(range(EXPERTS)), HIDDEN, INNER)
    experts.initialise(seed=1, std_in=0.5, std_out=0.5)
    experts.b_out.set_data(Tensor(np.random.default_rng(2).standard_normal(experts.b_out.shape).astype(np.float32)))
    return MoEFeedForward(
        MultiLevelRouting([0], router),
        slots[0],
        experts,
        local_experts_table(LAYOUT, ExpertPlacement(EXPERTS, 1, 4)),
        evaluation_dispatcher=slots[1],
        **options,
    )


def run(layer, x=X):
    zeros = np.zeros(TOKENS, np.int32)
    tokens = {"ids": IDS, "domain": zeros, "home": HOME, "seed": zeros}
    y, report = layer(Tensor(x), {name: Tensor(array) for name, array in tokens.items()})
    return y.asnumpy(), {name: tensor.asnumpy() for name, tensor in report.items()}


def expert_of_each_token(layer, x=X):
    w_in, b_in, w_out, b_out = (
        parameter.asnumpy().astype(np.float64)[IDS] for parameter in layer.experts.trainable_params()
    )
    hidden = np.einsum("td,tdf->tf", x.astype(np.float64), w_in) + b_in[:, 0]
    return np.einsum("tf,tfd->td", hidden * special.ndtr(hidden), w_out) + b_out[:, 0]


KEPT_BY_TWO_SLOTS = np.array([1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0], bool)


def test_dropped_tokens_come_back_as_zeros():
    layer = build().set_train()
    y, _ = run(layer)
    assert not y[~KEPT_BY_TWO_SLOTS].any()
    # float32 with numbers of order 1.
    np.testing.assert_allclose(
        y[KEPT_BY_TWO_SLOTS], expert_of_each_token(layer)[KEPT_BY_TWO_SLOTS], rtol=1e-5, atol=1e-5
    )


def test_report_counts_this_batch():
    _, report = run(build().set_train())
    assert report["assigned"].tolist() == [6, 2, 4, 0]
    assert report["kept"] == 6
    on_own_node = [(IDS[t] // 2 == HOME[t] // 2) for t in np.flatnonzero(KEPT_BY_TWO_SLOTS)]
    assert report["kept_local"] == sum(on_own_node)
    assert report["aux_loss"] == 0 == report["locality_loss"]


def test_evaluation_has_slots_of_its_own():
    layer = build(evaluation_capacity=TOKENS)
    y, report = run(layer.set_train(False))
    np.testing.assert_allclose(y, expert_of_each_token(layer), rtol=1e-5, atol=1e-5)
    assert report["kept"] == TOKENS
    assert run(layer.set_train())[1]["kept"] == 6


def test_evaluation_uses_the_same_slots_where_none_are_given():
    assert run(build().set_train(False))[1]["kept"] == 6


def test_tokens_come_back_in_their_own_dtype():
    layer = build().set_train()
    y, report = run(layer, X.astype(np.float16))
    assert y.dtype == np.float16 and report["kept"].dtype == np.float32
    # Half precision rounds outputs of order 1 to 5e-4; the experts compute in float32.
    expected = expert_of_each_token(layer, X.astype(np.float16))[KEPT_BY_TWO_SLOTS]
    np.testing.assert_allclose(y[KEPT_BY_TWO_SLOTS], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale_by_gate", [True, False])
def test_gate_scales_outputs_only_where_asked(scale_by_gate):
    router = make_router(context_of("switch", RoutingShape(HIDDEN, EXPERTS)))
    weight = np.random.default_rng(5).standard_normal((EXPERTS, HIDDEN)).astype(np.float32)
    router.gate.weight.set_data(Tensor(weight))
    layer = build(router, capacity=TOKENS, scale_by_gate=scale_by_gate).set_train()
    layer.experts.w_out.set_data(Tensor(np.zeros(layer.experts.w_out.shape, np.float32)))
    layer.experts.b_out.set_data(Tensor(np.ones(layer.experts.b_out.shape, np.float32)))
    y, _ = run(layer)
    probability = special.softmax(X.astype(np.float64) @ weight.T, axis=1).max(1)
    expected = probability if scale_by_gate else np.ones(TOKENS)
    np.testing.assert_allclose(y, np.tile(expected[:, None], HIDDEN), rtol=1e-5)  # logits of order 5 in float32


# ---- level 1: domains

VOCABULARY = 5


def hash_router(groups=3, per_group=2):
    table = np.arange(groups * VOCABULARY).reshape(groups, VOCABULARY) % per_group
    return HashRouter(RoutingShape(4, groups * per_group, groups), table)


def test_domain_picks_the_group_and_the_router_an_expert_of_it():
    cell = MultiLevelRouting([2, 0, 2, 1], hash_router())
    domain, ids = np.array([0, 1, 2, 3, 3, 1]), np.array([0, 1, 2, 3, 4, 0])
    inputs = {"domain": domain, "ids": ids, "home": np.zeros(6), "seed": np.zeros(6)}
    found = cell(
        Tensor(np.zeros((6, 4), np.float32)), {name: Tensor(value.astype(np.int32)) for name, value in inputs.items()}
    )
    group = np.array([2, 0, 2, 1])[domain]
    within = (group * VOCABULARY + ids) % 2
    assert found["expert"].asnumpy().ravel().tolist() == (2 * group + within).tolist()


@pytest.mark.parametrize("domain_groups", [[0, 3], [-1], []])
def test_unknown_groups_are_refused(domain_groups):
    with pytest.raises(InputError, match="expected group ids 0 to 2, one a domain"):
        MultiLevelRouting(domain_groups, hash_router())


def test_ids_inside_their_tables_pass():
    check_token_ids(np.array([[0, 4], [2, 2]]), np.array([0, 1]), VOCABULARY, 2)
    check_token_ids(np.zeros((0,), np.int32), np.zeros((0,), np.int32), VOCABULARY, 2)


@pytest.mark.parametrize(
    "ids, domain, message",
    [
        ([0, 5], [0, 0], "token id 5 is out of range; expected 0 to 4"),
        ([-1, 9], [0, 0], "token id -1 is out of range; expected 0 to 4"),
        ([0, 4], [0, 2], "domain id 2 is out of range; expected 0 to 1"),
        ([0, 4], [-7, 0], "domain id -7 is out of range; expected 0 to 1"),
    ],
)
def test_ids_outside_their_tables_are_named(ids, domain, message):
    with pytest.raises(InputError, match=message):
        check_token_ids(np.array(ids), np.array(domain), VOCABULARY, 2)


# ---- the builder: its layer equals the NumPy reference with the same weights, and it refuses what does not fit


@pytest.mark.parametrize("router", ["locmoe", "switch", "hash"])
def test_layer_equals_reference(router):
    tokens, width, experts, vocabulary = 24, 16, 4, 50
    layer = build_moe(tokens, width, 32, experts, router, vocab_size=vocabulary)
    generator = np.random.default_rng(3)
    x = generator.standard_normal((tokens, width)).astype(np.float32)
    ids = generator.integers(0, vocabulary, tokens).astype(np.int32)
    zeros = np.zeros(tokens, np.int32)
    fields = {
        name: Tensor(value) for name, value in (("ids", ids), ("domain", zeros), ("home", zeros), ("seed", zeros))
    }
    y, report = layer(Tensor(x), fields)

    bank, chosen = layer.experts, layer.routing.router
    parameters = LayerParameters(
        bank.w_in.asnumpy(),
        bank.b_in.asnumpy()[:, 0],
        bank.w_out.asnumpy(),
        bank.b_out.asnumpy()[:, 0],
        gate=chosen.gate.weight.asnumpy() if router == "switch" else None,
        table=chosen.table.asnumpy() if router == "hash" else None,
    )
    spec = LayerSpec(Topology(1, 1), ExpertPlacement(experts, 1, 1), capacity=8, router=router)  # ceil(1.25 * 24 / 4)
    expected = moe_layer(spec, parameters, [RankTokens(x, ids, zeros, zeros)])
    # float32 against float64: outputs are sums of at most 32 products of order 0.01
    np.testing.assert_allclose(y.asnumpy(), expected.outputs[0], atol=1e-6)
    assert float(report["aux_loss"].asnumpy()) == pytest.approx(expected.aux_loss, rel=1e-5, abs=1e-9)
    assert np.array_equal(report["assigned"].asnumpy(), expected.stats.tokens_per_expert)


@pytest.mark.parametrize("top_k, capacity_factor", [(1, 0.25), (4, 1.0)])
def test_shared_experts_serve_every_token(top_k, capacity_factor):
    """Dropped ones too, and beside whichever dispatcher; the report is that of the routed experts."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    sizes = (24, 16, 20, 4, "switch", top_k, capacity_factor)
    plain, layer = build_moe(*sizes), build_moe(*sizes, shared_experts=3)
    network = layer.shared_experts
    for parameter in network.trainable_params():
        parameter.set_data(Tensor(np.random.default_rng(1).standard_normal(parameter.shape).astype(np.float32)))
    w_in, b_in, w_out, b_out = (parameter.asnumpy().astype(np.float64) for parameter in network.trainable_params())
    assert w_in.shape == (3 * 20, 16) and w_out.shape == (16, 3 * 20)
    x = np.random.default_rng(3).standard_normal((24, 16)).astype(np.float32)
    fields = {name: Tensor(np.zeros(24, np.int32)) for name in ("ids", "domain", "home", "seed")}
    hidden = x @ w_in.T + b_in
    added = hidden * special.ndtr(hidden) @ w_out.T + b_out
    (routed, report), (found, its_report) = plain(Tensor(x), fields), layer(Tensor(x), fields)
    # float32; sums of 60 products of order 10.
    np.testing.assert_allclose(found.asnumpy() - routed.asnumpy(), added, rtol=0, atol=1e-5 * np.abs(added).max())
    assert report.keys() == its_report.keys()
    assert all(np.array_equal(report[name].asnumpy(), its_report[name].asnumpy()) for name in report)
    assert report["kept"] < 24 * top_k or top_k == 4  # some tokens have shared experts alone
    np.testing.assert_array_equal(layer(Tensor(x), fields, layer.dispatcher)[0].asnumpy(), found.asnumpy())


@pytest.mark.parametrize(
    "change, fragment",
    [
        ({"router": "best"}, "expected one of c2r, etr, faster_moe"),
        ({"router": "hash"}, "vocab_size"),
        ({"num_experts": 5}, "do not divide hidden size 16"),
        ({"top_k": 9}, "expected 1 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(change, fragment):
    sizes = {"tokens": 8, "hidden_size": 16, "ffn_hidden_size": 32, "num_experts": 4, **change}
    with pytest.raises(InputError, match=fragment):
        build_moe(**sizes)
