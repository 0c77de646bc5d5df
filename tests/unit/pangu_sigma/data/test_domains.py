import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.data.domains import domains_of_node, resolve_domain_groups


def test_groups_by_default() -> None:
    assert resolve_domain_groups(None, 3, 1) == (0, 0, 0)
    assert resolve_domain_groups(None, 3, 3) == (0, 1, 2)
    assert resolve_domain_groups((1, 0, 1), 3, 2) == (1, 0, 1)


@pytest.mark.parametrize(("groups", "num_groups"), [(None, 2), (None, 4), ((0, 1), 2), ((0, 1, 2), 2), ((0, -1, 0), 2)])
def test_groups_that_do_not_fit(groups: object, num_groups: int) -> None:
    with pytest.raises(InputError, match=r"moe\.domain_groups"):
        resolve_domain_groups(groups, 3, num_groups)


@pytest.mark.parametrize(
    ("nodes", "groups", "expected"),
    [
        (2, (0, 1, 2, 3), [(0, 1), (2, 3)]),
        (4, (0, 1), [(0,), (0,), (1,), (1,)]),
        (2, (0, 1, 2), [(0, 1), (2,)]),
        (3, (0, 1), [(0,), (1,), (1,)]),
        (1, (0, 1, 2), [(0, 1, 2)]),
    ],
)
def test_domains_of_each_node_by_hand(nodes: int, groups: tuple, expected: list) -> None:
    assert [domains_of_node(node, nodes, groups, len(groups)) for node in range(nodes)] == expected


def test_every_domain_has_a_node() -> None:
    for nodes in range(1, 9):
        for num_groups in range(1, 9):
            groups = [d % num_groups for d in range(num_groups + 2)]
            placed = [domains_of_node(node, nodes, groups, num_groups) for node in range(nodes)]
            assert {d for domains in placed for d in domains} == set(range(len(groups)))
            assert all(placed)
