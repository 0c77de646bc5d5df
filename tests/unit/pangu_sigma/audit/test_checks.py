"""What the checks find in graphs that are right but for one thing. The graphs are lists written by hand."""

from dataclasses import replace

import pytest

from helpers.rank_graphs import PLANNED, TOPOLOGY, graphs
from pangu_sigma.audit.checks import bytes_by_cause, check, groups_disagree, run_in_step


def with_collectives(own, change):
    return replace(own, graphs=(replace(own.graphs[0], collectives=tuple(change(list(own.graphs[0].collectives)))),))


def test_graphs_that_agree_have_no_problem():
    assert check(graphs(), PLANNED, TOPOLOGY) == []


def test_bytes_by_hand():
    """The exchange: parts of 48 numbers to three peers, one of them near. The sums: a part of 20 bytes to the
    neighbour; a sum of so few bytes goes whole to the other node.
    """
    found = bytes_by_cause(graphs(), TOPOLOGY)
    assert found["all_to_all"] == (4 * 48, 4 * 2 * 48)
    assert found["gradient"] == (4 * 20, 4 * 20)


def skip(found):
    return found[:1] + found[2:]


def swap(found):
    return [found[1], found[0], found[2]]


def other_capacity(found):
    return [replace(found[0], shape=(4, 5, 3)), *found[1:]]


def other_type(found):
    return [replace(found[0], dtype="float16"), *found[1:]]


def other_cell(found):
    return [replace(found[0], tag="all_to_all/layer 1/dispatch"), *found[1:]]


@pytest.mark.parametrize(
    "change, fragments",
    [
        (skip, ["rank 0 waits for ever in reduce_scatter 'gradient/0/scatter'", "its peers are 1: at the end"]),
        (swap, ["waits for ever", "reduce_scatter", "all_to_all"]),
        (other_capacity, ["4 x 4 x 3 float32", "4 x 5 x 3 float32", "rank 1"]),
        (other_type, ["float32", "float16"]),
        (other_cell, ["layer 0", "layer 1"]),
    ],
)
def test_a_rank_that_differs_is_caught(change, fragments):
    ranks = graphs()
    ranks[1] = with_collectives(ranks[1], change)
    stuck = run_in_step([own.graphs[0] for own in ranks])
    assert stuck and all(fragment in "\n".join(stuck) for fragment in fragments), stuck
    assert set(stuck) <= set(check(ranks, PLANNED, TOPOLOGY))


def test_two_groups_in_crossed_orders_are_a_deadlock():
    """Each group's own sequence is the same on all its ranks, and yet nobody comes to an end."""
    ranks = [
        own if own.rank in (0, 3) else with_collectives(own, lambda found: [found[0], found[2], found[1]])
        for own in graphs()
    ]
    stuck = run_in_step([own.graphs[0] for own in ranks])
    assert len(stuck) == 4 and all("waits for ever" in line for line in stuck)


def test_groups_that_are_made_in_another_order_or_of_others():
    ranks = graphs()
    turned = dict(reversed(list(ranks[1].groups.items())))
    assert any(
        "ranks 0 and 1" in line for line in groups_disagree([ranks[0], replace(ranks[1], groups=turned), *ranks[2:]])
    )
    other = {**ranks[1].groups, "node_0": (0, 1, 2)}
    assert any(
        "ranks 0 and 1" in line for line in groups_disagree([ranks[0], replace(ranks[1], groups=other), *ranks[2:]])
    )


@pytest.mark.parametrize(
    "planned, fragment",
    [
        (
            [replace(PLANNED[0], elements=52), *PLANNED[1:]],
            "of 192 bytes among ranks (0, 1, 2, 3) for all_to_all: 1 in a step's graphs, 0",
        ),
        ([replace(PLANNED[0], times=2), *PLANNED[1:]], "1 in a step's graphs, 2 in its plan"),
        (PLANNED[:2], "all_reduce of 20 bytes among ranks (0, 2) for gradient: 1 in a step's graphs, 0 in its plan"),
        (
            [*PLANNED[:2], replace(PLANNED[2], group="dp")],
            "all_reduce of 20 bytes among ranks (0, 1, 2, 3) for gradient: 0 in a step's graphs",
        ),
    ],
)
def test_what_is_not_in_the_plan_is_caught(planned, fragment):
    assert any(fragment in line for line in check(graphs(), planned, TOPOLOGY))


def test_faults_of_a_graph_and_ranks_with_other_graphs_are_told():
    ranks = graphs()
    ranks[2] = replace(
        ranks[2], graphs=(replace(ranks[2].graphs[0], faults=("Print in network/head, which leaves the device",)),)
    )
    assert "rank 2, graph step: Print in network/head, which leaves the device" in check(ranks, PLANNED, TOPOLOGY)
    ranks[2] = replace(ranks[2], graphs=(replace(ranks[2].graphs[0], times=2),))
    assert any("different graphs" in line for line in check(ranks, PLANNED, TOPOLOGY))
