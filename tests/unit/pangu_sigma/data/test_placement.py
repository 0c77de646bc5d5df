"""Rows on nodes: what each node reads, and that nothing is read more or less often for it."""

import re
from collections import Counter
from fractions import Fraction
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.data.loader import choose_validation_rows
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
    with pytest.raises(InputError, match=r"domain_cluster_by_node, but .* no clusters; .*clusters\.count=4"):
        place([(9,), (9,)], 4, "domain_cluster_by_node")
    with pytest.raises(InputError, match="each of the 4 domains has one of 2 nodes, and all of its clusters"):
        place([(9, 9)] * 4, 2, "domain_cluster_by_node", "domain")


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


# Rows of four clusters of each of three domains: small, none at all, most; and of their validation.
CELLS = ((6, 5, 0, 9), (4, 12, 8, 0), (10, 1, 2, 7))


def share_of_row(domain: int, mixing: str) -> Fraction:
    sizes = [sum(of_domain) for of_domain in CELLS]
    return Fraction(1, 3 * sizes[domain]) if mixing == "balanced" else Fraction(1, sum(sizes))


def middles(within: str, mixing: str) -> Dict[Tuple[int, int], Fraction]:
    """Where the middle of each (domain, row) lies on the line, one row after the other."""
    cells = [(d, k) for k in range(4) for d in range(3)] if within == "corpus" else np.ndindex(3, 4)
    place, found = Fraction(0), {}
    for domain, cluster in cells:
        if within == "domain" and cluster == 0:
            place = Fraction(0)
        first = sum(CELLS[domain][:cluster])
        for row in range(first, first + CELLS[domain][cluster]):
            length = share_of_row(domain, mixing) if within == "corpus" else Fraction(1, sum(CELLS[domain]))
            found[domain, row] = place + length / 2
            place += length
    assert abs(place - 1) < Fraction(1, 10**9)
    return found


@pytest.mark.parametrize("mixing", ["balanced", "proportional"])
@pytest.mark.parametrize("within", ["corpus", "domain"])
@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_clusters_on_nodes(within: str, mixing: str, nodes: int) -> None:
    """Rows of a step are those without placement, and go to nodes in the order of their places: the first part to the
    first, and so on. Over steps, a row that lies well inside a node's part is read there alone.
    """
    placed, plain = (place(CELLS, nodes, kind, within, mixing) for kind in ("clustered", "shuffled"))
    expected, share, steps = middles(within, mixing), 6, 200
    per_node = 2 * share
    samplers = [BatchSampler(CELLS, one, nodes * per_node, 3, mixing) for one in (placed, plain)]
    elsewhere = 0
    for step in range(steps):
        rows, without = (
            list(zip(batch.domain.tolist(), batch.row.tolist())) for batch in (one.batch(step) for one in samplers)
        )
        assert sorted(rows) == sorted(without)
        by_node = [[expected[row] for row in rows[v * per_node : (v + 1) * per_node]] for v in range(nodes)]
        assert all(max(left) <= min(right) for left, right in zip(by_node, by_node[1:]))
        elsewhere += sum(int(at * nodes) != v for v, places in enumerate(by_node) for at in places)
    # A step has its part of each cluster but for a row or so, of three domains, at each border between nodes.
    assert elsewhere / steps <= 3 * (nodes - 1)


@pytest.mark.parametrize("within", ["corpus", "domain"])
@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # two domains on four nodes, and on each of a domain's two the one or the other half of its clusters
        (((6, 6), (9, 9)), [{(0, 0)}, {(0, 1)}, {(1, 0)}, {(1, 1)}]),
        (((5, 7, 8, 4), (9, 3, 6, 6)), [{(0, 0), (0, 1)}, {(0, 2), (0, 3)}, {(1, 0), (1, 1)}, {(1, 2), (1, 3)}]),
        # one domain, whose four clusters are placed
        (((6, 6, 6, 6),), [{(0, 0)}, {(0, 1)}, {(0, 2)}, {(0, 3)}]),
    ],
)
def test_clusters_on_the_nodes_of_their_domain(cells: Cells, expected: List[set], within: str) -> None:
    placed = place(cells, 4, "domain_cluster_by_node", within)
    assert placed.notes == ()
    of_cell: List[Counter] = [Counter() for _ in range(4)]
    for node, rows in enumerate(read_by_node(cells, placed, 60, 6, "balanced")):
        for (domain, row), count in rows.items():
            of_cell[node][domain, int(np.argmax(row < np.cumsum(cells[domain])))] += count
    for counts, own in zip(of_cell, expected):
        assert sum(counts[cell] for cell in own) >= 0.9 * sum(counts.values())  # but for a row or so of a step's twelve
        assert {domain for domain, _ in counts} == {domain for domain, _ in own}
    plain = sum(read_by_node(cells, place(cells, 4, "shuffled", within), 60, 6, "balanced"), Counter())
    assert sum(read_by_node(cells, placed, 60, 6, "balanced"), Counter()) == plain


@pytest.mark.parametrize("mixing", ["balanced", "proportional"])
@pytest.mark.parametrize(("kind", "within"), [("clustered", "corpus"), ("clustered", "domain"), ("shuffled", "corpus")])
def test_every_row_is_read_as_often_whatever_the_placement(kind: str, within: str, mixing: str) -> None:
    share, steps = 5, 640  # 20 rows a step, 12,800 in all
    counts = sum(read_by_node(CELLS, place(CELLS, 2, kind, within, mixing), steps, share, mixing), Counter())
    assert len(counts) == 64
    for (domain, _), count in counts.items():
        assert abs(count - 20 * steps * share_of_row(domain, mixing)) <= 1  # whole passes, and one that is not over


@pytest.mark.parametrize("share", [1, 2, 3])
@pytest.mark.parametrize(("domains", "nodes"), [(2, 2), (4, 2), (2, 4), (3, 2), (3, 4), (6, 4)])
def test_domains_on_nodes_read_the_rows_that_shuffled_ones_do(domains: int, nodes: int, share: int) -> None:
    """After every so many steps as there are domains, which nodes take in turn."""
    cells = [(10 + 7 * d,) for d in range(domains)]
    counts = []
    for kind in ("domain_by_node", "shuffled"):
        by_node = [read_by_node(cells, place(cells, nodes, kind), k * domains, share, "balanced") for k in (1, 2, 7)]
        counts.append([sum(of_nodes, Counter()) for of_nodes in by_node])
    assert counts[0] == counts[1]


def test_rows_of_a_node_stay_as_they_are_drawn() -> None:
    """Domains in turn, so that no rank or micro-batch of the node gets one alone."""
    sampler = BatchSampler(CELLS, place(CELLS, 2, "clustered", "domain"), 48, 3)
    domain = sampler.batch(0).domain.reshape(4, 12)
    assert all(np.bincount(of_rank, minlength=3).min() >= 3 for of_rank in domain)


@pytest.mark.parametrize("within", ["corpus", "domain"])
def test_validation_rows_are_at_home_where_their_cluster_is(within: str) -> None:
    """A row stands as far along its cluster's part of the line as among its validation rows."""
    validation = ((1, 3, 2, 0), (2, 2, 2, 2), (0, 5, 0, 1))
    layout = Topology(4, 2)
    cells = {"train": CELLS, "validation": validation}
    placed = place_rows(layout, "clustered", "balanced", NAMES[:3], cells, within)
    chosen = choose_validation_rows([sum(rows) for rows in validation], 20, placed)
    assert len(chosen.row) == 20
    on_line = middles(within, "balanced")
    for domain, row, home in zip(chosen.domain.tolist(), chosen.row.tolist(), chosen.home.tolist()):
        ends = np.cumsum(validation[domain])
        cluster = int(np.argmax(row < ends))
        along = Fraction(
            2 * (row - int(ends[cluster]) + validation[domain][cluster]) + 1, 2 * validation[domain][cluster]
        )
        first = sum(CELLS[domain][:cluster])
        members = [on_line[domain, number] for number in range(first, first + CELLS[domain][cluster])]
        if members:
            length = Fraction(1, 3 * sum(CELLS[domain])) if within == "corpus" else Fraction(1, sum(CELLS[domain]))
            begin, end = members[0] - length / 2, members[-1] + length / 2
            assert home // 2 == min(1, int(2 * (begin + along * (end - begin))))
    assert np.bincount(chosen.home // 2).sum() == 20
    for node in range(2):
        of_ranks = np.bincount(chosen.home[chosen.home // 2 == node] % 2, minlength=2)
        assert abs(of_ranks[0] - of_ranks[1]) <= 1


@pytest.mark.parametrize(
    ("cells", "nodes", "within", "notes"),
    [
        (((8, 8), (8, 8)), 2, "corpus", []),
        (((8, 8, 8, 8),), 2, "corpus", []),
        (
            ((8, 8, 8),),
            2,
            "corpus",
            ["the clusters do not fill 2 nodes evenly; .* cluster 1: 50 % on node 0, 50 % on node 1$"],
        ),
        (((8, 8), (8, 8)), 4, "corpus", ["cluster 0: 50 % on node 0, 50 % on node 1; cluster 1: "]),
        (((9, 3), (2, 2)), 2, "domain", ["cluster 0 of en: 67 % on node 0, 33 % on node 1$"]),
        (((9, 3), (2, 2)), 1, "domain", ["clustered places nothing on the only node"]),
        (
            ((9, 9), (2, 2)),
            3,
            "by domain",
            ["clusters do not fill 3 nodes evenly; .* cluster 1 of en: 33 % on node 0"],
        ),
    ],
)
def test_clusters_that_do_not_divide_are_told(cells: Cells, nodes: int, within: str, notes: List[str]) -> None:
    kind, within = ("domain_cluster_by_node", "domain") if within == "by domain" else ("clustered", within)
    found = place(cells, nodes, kind, within).notes
    assert len(found) == len(notes)
    assert all(re.search(expected, note) for expected, note in zip(notes, found)), found
