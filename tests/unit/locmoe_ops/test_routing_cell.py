import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.errors import InputError
from locmoe_ops.moe import MultiLevelRouting, check_token_ids
from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.hash import HashRouter

VOCABULARY = 5


def router(groups=3, per_group=2):
    table = np.arange(groups * VOCABULARY).reshape(groups, VOCABULARY) % per_group
    return HashRouter(RoutingShape(4, groups * per_group, groups), table)


@pytest.mark.usefixtures("graph_mode")
def test_domain_picks_the_group_and_the_router_an_expert_of_it():
    cell = MultiLevelRouting([2, 0, 2, 1], router())
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
        MultiLevelRouting(domain_groups, router())


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
