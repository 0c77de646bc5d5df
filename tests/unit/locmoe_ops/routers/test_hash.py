import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.hash import HashRouter

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


def test_more_than_one_expert_a_token_is_refused():
    with pytest.raises(InputError, match="top_k 2: the hash router sends a token to one expert; expected 1"):
        HashRouter(RoutingShape(4, 6, 2, top_k=2), np.zeros((2, VOCABULARY), int))
