from dataclasses import replace

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterCost, RouterSizes
from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.hash import HashRouter
from locmoe_ops.routers.specs.hash import ROUTER, HashOptions

SHAPE = RoutingShape(hidden_size=4, num_experts=6, num_groups=2)
VOCABULARY = 7


@pytest.mark.usefixtures("graph_mode")
def test_every_id_goes_where_its_group_s_table_says():
    table = np.random.default_rng(0).integers(0, 3, (2, VOCABULARY))
    ids, group = np.tile(np.arange(VOCABULARY), 2), np.repeat([0, 1], VOCABULARY)
    given = {"ids": ids, "group": group, "home": 0 * ids, "seed": 0 * ids}
    found = HashRouter(SHAPE, table)(
        Tensor(np.zeros((14, 4), np.float32)), {name: Tensor(array.astype(np.int32)) for name, array in given.items()}
    )
    assert found["expert"].asnumpy().ravel().tolist() == [3 * g + table[g, i] for g, i in zip(group, ids)]
    assert found["weight"].asnumpy().tolist() == [[1.0]] * 14
    assert found["aux_loss"].asnumpy() == 0 == found["locality_loss"].asnumpy()


def test_the_table_is_kept_but_not_trained():
    router = HashRouter(SHAPE, np.zeros((2, VOCABULARY), int))
    assert [parameter.name for parameter in router.get_parameters()] == ["table"] and not router.trainable_params()


@pytest.mark.parametrize(
    "groups, worst, found",
    [
        (2, 3, "2 groups with experts 0 to 3"),
        (2, -1, "2 groups with experts -1 to 0"),
        (3, 0, "3 groups with experts 0 to 0"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(groups, worst, found):
    table = np.zeros((groups, VOCABULARY), int)
    table[0, 2] = worst
    with pytest.raises(InputError, match=f"{found}; expected 2 groups with experts 0 to 2"):
        HashRouter(SHAPE, table)


PAIRS = np.tile([[0, 1], [2, 0]], (2, VOCABULARY, 1))[:, :VOCABULARY]  # (G, V, k) of TWO
TWO = RoutingShape(4, 6, 2, top_k=2)


@pytest.mark.parametrize(
    "shape, table, line",
    [
        (TWO, PAIRS[..., 0], "hash table: 1 experts a token id; expected top_k, 2"),
        (TWO, np.concatenate([PAIRS, 2 - PAIRS[..., :1]], 2), "hash table: 3 experts a token id; expected top_k, 2"),
        (SHAPE, PAIRS, "hash table: 2 experts a token id; expected top_k, 1"),
        (
            TWO,
            np.where(np.arange(VOCABULARY)[:, None] == 5, 2, PAIRS),
            "hash table: group 0, token id 5 has the experts [2, 2]; expected different ones",
        ),
    ],
)
def test_a_table_has_top_k_different_experts_an_id(shape, table, line):
    with pytest.raises(InputError) as caught:
        HashRouter(shape, table)
    assert str(caught.value) == line


def route(router, x, ids, group):
    given = {"ids": ids, "group": group, "home": 0 * ids, "seed": 0 * ids}
    return router(Tensor(x), {name: Tensor(np.asarray(array, np.int32)) for name, array in given.items()})


def test_several_experts_an_id_share_its_output_equally():
    ids, group = np.tile(np.arange(VOCABULARY), 2), np.repeat([0, 1], VOCABULARY)
    found = route(HashRouter(TWO, PAIRS), np.zeros((14, 4), np.float32), ids, group)
    assert (found["expert"].asnumpy() == 3 * group[:, None] + PAIRS[group, ids]).all()
    assert (found["weight"].asnumpy() == 0.5).all()


@pytest.mark.parametrize(
    "score, expected",
    [
        # Gate values of the group's three experts are 0, ln 3 and -ln 3; the token's id has the last two.
        ("sigmoid", [0.75, 0.25]),  # 3 / 4 and 1 / 4
        ("softmax", [9 / 13, 1 / 13]),  # 3 / (1 + 3 + 1/3) and (1/3) / (1 + 3 + 1/3)
        ("sqrt_softplus", [np.log(4.0) ** 0.5, np.log(4.0 / 3.0) ** 0.5]),
    ],
)
@pytest.mark.parametrize("renormalise, scale", [(True, 1.0), (True, 2.5), (False, 1.5)])
def test_weights_by_a_gate_by_hand(score, expected, renormalise, scale):
    table = np.full((2, VOCABULARY, 2), [1, 2])
    options = HashOptions(weights="gate", score=score, renormalise=renormalise, scale=scale)
    router = HashRouter(TWO, table, options)
    weight = np.zeros((6, 4), np.float32)
    weight[4, 0], weight[5, 0] = np.log(3.0), -np.log(3.0)  # of group 1; group 0 has no say
    weight[:3] = 7.0
    router.gate.weight.set_data(Tensor(weight))
    found = route(router, np.array([[1.0, 0.0, 0.0, 0.0]], np.float32), np.array([4]), np.array([1]))
    assert found["expert"].asnumpy().tolist() == [[4, 5]]
    weights = np.array(expected) / (sum(expected) if renormalise else 1.0) * scale
    np.testing.assert_allclose(found["weight"].asnumpy()[0], weights, rtol=1e-6)  # some roundings of float32


def test_the_gate_is_trained_and_the_table_is_not():
    router = HashRouter(TWO, PAIRS, HashOptions(weights="gate"))
    assert [parameter.name for parameter in router.get_parameters()] == ["table", "gate.weight"]
    assert [parameter.name for parameter in router.trainable_params()] == ["gate.weight"]


SIZES = RouterSizes(4, 6, 2, top_k=2)


@pytest.mark.parametrize(
    "options, sizes, line",
    [
        (
            {"scale": 2.0},
            SIZES,
            "moe.router.hash.scale is 2.0 with moe.router.hash.weights equal, which has no gate; expected 1.0, its "
            "default, or moe.router.hash.weights gate",
        ),
        (
            {"renormalise": False},
            SIZES,
            "moe.router.hash.renormalise is false with moe.router.hash.weights equal, which has no gate; expected "
            "true, its default, or moe.router.hash.weights gate",
        ),
        (
            {"score": "sigmoid"},
            SIZES,
            "moe.router.hash.score is sigmoid with moe.router.hash.weights equal, which has no gate; expected "
            "sqrt_softplus, its default, or moe.router.hash.weights gate",
        ),
        (
            {"weights": "gate"},
            replace(SIZES, top_k=1),
            "moe.router.hash.weights is gate with moe.router.top_k 1 and moe.router.hash.renormalise true, by which "
            "every token's one weight is 1 and the gate learns nothing; expected renormalise false, or top_k 2 or more",
        ),
        (
            {"weights": "gate"},
            replace(SIZES, scale_by_gate=False),
            "moe.router.hash.weights is gate with moe.scale_by_gate false, which leaves its weights unused; expected "
            "equal",
        ),
        (
            {"map": "maps.safetensors", "balance": "frequency"},
            SIZES,
            "moe.router.hash.balance is frequency with moe.router.hash.map maps.safetensors, which says every id's "
            "experts; expected uniform, its default",
        ),
    ],
)
def test_keys_that_have_no_part_are_refused(options, sizes, line):
    with pytest.raises(InputError) as caught:
        ROUTER.check(HashOptions(**options), sizes)
    assert str(caught.value) == line


def test_costs_are_those_of_the_gate_alone():
    assert ROUTER.cost(HashOptions(), SIZES) == RouterCost()
    by_gate = ROUTER.cost(HashOptions(weights="gate"), SIZES)
    assert by_gate == RouterCost({"gate.weight": (6, 4)}, 24, "none")  # 6 experts, 4 features; no loss
