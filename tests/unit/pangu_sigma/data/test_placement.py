"""Rows on nodes: what each node reads, and that nothing is read more or less often for it."""

import re
from collections import Counter
from fractions import Fraction
from typing import Dict, List, Optional, Sequence

import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.data.placement import RowPlacement, make_zones, place_rows
from pangu_sigma.data.sampler import BatchSampler
from pangu_sigma.model.capacity_rules import SlotRules

Cells = Sequence[Sequence[int]]
NAMES = ["en", "zh", "code", "math", "law", "news"]


def place(
    cells: Cells, nodes: int, kind: str, within: Optional[str] = None, mixing: str = "balanced", per_node: int = 2
) -> RowPlacement:
    layout = Topology(nodes * per_node, per_node)
    return place_rows(layout, kind, mixing, NAMES[: len(cells)], {"train": cells, "validation": cells}, within)


def read_by_node(cells: Cells, placement: RowPlacement, steps: int, share: int, mixing: str) -> List[Counter]:
    """How often each node reads each (domain, row)."""
    layout = placement.layout
    sampler = BatchSampler(cells, placement, layout.world_size * share, 3, mixing)
    counts: List[Counter] = [Counter() for _ in range(layout.nodes)]
    for step in range(steps):
        batch = sampler.batch(step)
        for index, row in enumerate(zip(batch.domain.tolist(), batch.row.tolist())):
            counts[layout.node_of(index // share)][row] += 1
    return counts


@pytest.mark.parametrize(
    ("domains", "nodes", "expected"),
    [
        (2, 2, [{0: 1}, {1: 1}]),
        (4, 2, [{0: "1/2", 1: "1/2"}, {2: "1/2", 3: "1/2"}]),
        (2, 4, [{0: 1}, {0: 1}, {1: 1}, {1: 1}]),
        (3, 2, [{0: "2/3", 1: "1/3"}, {1: "1/3", 2: "2/3"}]),
        (2, 3, [{0: 1}, {0: "1/2", 1: "1/2"}, {1: 1}]),
        (6, 4, [{0: "2/3", 1: "1/3"}, {1: "1/3", 2: "2/3"}, {3: "2/3", 4: "1/3"}, {4: "1/3", 5: "2/3"}]),
    ],
)
def test_shares_of_domains_on_nodes(domains: int, nodes: int, expected: List[Dict[int, object]]) -> None:
    cells = [(10 + 7 * d,) for d in range(domains)]
    share, steps = 3 * domains, 5
    found = read_by_node(cells, place(cells, nodes, "domain_by_node"), steps, share, "balanced")
    for counts, shares in zip(found, expected):
        total = sum(counts.values())
        assert total == 2 * share * steps
        by_domain: Counter = Counter()
        for (domain, _), count in counts.items():
            by_domain[domain] += count
        assert {d: Fraction(n, total) for d, n in by_domain.items()} == {d: Fraction(s) for d, s in shares.items()}


@pytest.mark.parametrize(
    ("groups", "of_domain", "expected"),
    [
        (1, None, [{0, 1, 2, 3, 4, 5}] * 3),
        (2, [0, 1, 1], [{0, 1, 2}, {3, 4, 5}, {3, 4, 5}]),
        (3, None, [{0, 1}, {2, 3}, {4, 5}]),
        (3, [2, 0, 1], [{4, 5}, {0, 1}, {2, 3}]),
    ],
)
def test_expert_groups_play_no_part(groups: int, of_domain: Optional[List[int]], expected: List[set]) -> None:
    """Domain i is on node i of three, whatever experts it goes to."""
    moe = {"num_experts": 6, "num_groups": groups, "domain_groups": of_domain}
    config = config_from_dict({"moe": moe, "data": {"placement": "domain_by_node"}})
    rules = SlotRules(config, Topology(3, 1), domains=3, tokens=8)
    assert rules.experts_by_node() == expected
    assert [zone.domains for zone in make_zones(rules.layout, "domain_by_node", 3)] == [(0,), (1,), (2,)]


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"data\.placement: domain_by_node places domains on 2 nodes, but the data has one"
    ):
        place([(9,)], 2, "domain_by_node")
    with pytest.raises(
        InputError, match=r"data\.placement: clustered, but .* no clusters; .* --set data\.prepare\.clusters\.count=4"
    ):
        place([(9,), (9,)], 4, "clustered")


@pytest.mark.parametrize(
    ("sizes", "nodes", "mixing", "notes"),
    [
        ((9, 9), 2, "balanced", []),
        ((9, 9, 9, 9), 2, "balanced", []),
        ((9, 9), 4, "balanced", []),
        ((9,), 1, "balanced", ["domain_by_node places nothing on the only node"]),
        (
            (9, 20, 9),
            2,
            "balanced",
            ["the domains do not fill 2 nodes evenly; .* zh: 50 % on node 0, 50 % on node 1$"],
        ),
        ((10, 10, 20), 2, "proportional", []),  # by size they do
        ((9, 20, 9), 2, "proportional", ["zh: 50 % on node 0, 50 % on node 1$"]),
        (
            (9, 9, 9, 9, 9, 9),
            4,
            "balanced",
            ["zh: 50 % on node 0, 50 % on node 1; law: 50 % on node 2, 50 % on node 3$"],
        ),
        ((30, 10), 2, "proportional", [r"within a node alone; .*: en 50 % \(75 %\), zh 50 % \(25 %\)$"]),
    ],
)
def test_what_does_not_divide_is_said(sizes: Sequence[int], nodes: int, mixing: str, notes: List[str]) -> None:
    found = place([(size,) for size in sizes], nodes, "domain_by_node", mixing=mixing).notes
    assert len(found) == len(notes)
    assert all(re.search(expected, note) for expected, note in zip(notes, found)), found


def test_shuffled_says_nothing() -> None:
    assert place([(9,)], 1, "shuffled").notes == place([(9,), (4,), (5,)], 2, "shuffled").notes == ()
