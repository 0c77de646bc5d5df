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
    ("nodes", "domains", "expected"),
    [
        (2, 2, [(0,), (1,)]),
        (2, 4, [(0, 1), (2, 3)]),
        (4, 2, [(0,), (0,), (1,), (1,)]),
        (2, 3, [(0, 1, 2), (0, 1, 2)]),  # the one in the middle is on both, and steps differ in their counts
        (3, 2, [(0, 1), (0, 1), (0, 1)]),
        (4, 6, [(0, 1, 2), (0, 1, 2), (3, 4, 5), (3, 4, 5)]),
        (1, 3, [(0, 1, 2)]),
    ],
)
def test_domains_of_each_node_by_hand(nodes: int, domains: int, expected: list) -> None:
    assert [domains_of_node(node, nodes, domains) for node in range(nodes)] == expected


def test_every_domain_has_a_node() -> None:
    for nodes in range(1, 9):
        for domains in range(1, 9):
            placed = [domains_of_node(node, nodes, domains) for node in range(nodes)]
            assert {d for of_node in placed for d in of_node} == set(range(domains)) and all(placed)
