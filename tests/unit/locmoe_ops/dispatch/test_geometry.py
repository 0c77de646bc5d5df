"""Geometry of the shipped dispatchers by hand: slots, tables and exchanges. No graph is compiled."""

import subprocess
import sys

import pytest

from locmoe_ops.dispatch.geometry import (
    COUNTS,
    RESULTS,
    TOKENS,
    DispatchOptions,
    DispatchSetup,
    FixedCapacities,
    gateway_exchanges,
    share_exchanges,
    share_of_slots,
    two_tier_slots,
    uniform_slots,
)
from locmoe_ops.dispatch.registry import dispatcher_spec
from locmoe_ops.topology import ExpertPlacement, ExpertSubgroup, Topology

EXPERTS = ExpertPlacement(8, 1, 4, "node_grouped")


def setup_of(topology=None, placement=EXPERTS, uniform=0, tiers=(0, 0), top_k=1, copies=None, **options):
    topology, capacities = topology or Topology(4, 2, 4), FixedCapacities(uniform, tiers, copies)
    return DispatchSetup(topology, placement, 10, top_k, capacities, DispatchOptions(**options))


@pytest.mark.parametrize(
    ("wanted", "shares", "chunks", "found"), [(9, 1, 1, 9), (9, 1, 4, 12), (9, 2, 1, 5), (9, 2, 2, 6), (0, 2, 2, 0)]
)
def test_slots_are_rounded_up(wanted, shares, chunks, found):
    assert share_of_slots(wanted, shares, chunks) == found


def test_flat_by_hand():
    """Four ranks of two experts: 10 slots of each, in two chunks."""
    setup, spec = setup_of(uniform=9, chunks=2), dispatcher_spec("flat")
    slots = spec.slots(setup)
    assert (slots.capacity, slots.expert_calls, slots.send_rows, slots.shares) == (10, (20, 20), 80, 1)
    found = [(e.operation, e.group, e.rows, e.carries, e.backward) for e in spec.exchanges(setup, slots)]
    one = [("all_to_all", "ep", 40, carries, backward) for carries in (TOKENS, RESULTS) for backward in (False, True)]
    assert found == one * 2
    alone = spec.slots(setup_of(Topology(1, 1), ExpertPlacement(8, 1, 1), uniform=9, chunks=2))
    assert (alone.capacity, alone.expert_calls) == (10, (10,))  # nothing to cut


def test_hierarchical_by_hand():
    """C_in = 9 and C_out = 4, so A = 5, 6 in two chunks: from 2 neighbours in each, and 4 slots from all 4 ranks."""
    setup, spec = setup_of(tiers=(9, 4), chunks=2), dispatcher_spec("hierarchical")
    slots = spec.slots(setup)
    assert (slots.capacity, slots.intra_node, slots.expert_calls) == (4, 6, (6, 6, 16))
    assert slots.send_rows == 8 * 4 + 4 * 6
    found = [(e.group, e.rows) for e in spec.exchanges(setup, slots)[::4]]
    assert found == [("ep_rail", 32), ("ep_node", 32), ("ep_node", 12), ("ep_node", 12)]


def test_hierarchical_where_a_tier_is_empty():
    spec = dispatcher_spec("hierarchical")
    inside, outside = setup_of(tiers=(9, 0), chunks=2), setup_of(tiers=(4, 4), chunks=2)
    assert spec.slots(inside).expert_calls == (18,)  # one chunk: there is nothing to overlap with
    assert {e.group for e in spec.exchanges(inside, spec.slots(inside))} == {"ep_node"}
    assert spec.slots(outside).expert_calls == (16,)
    assert len(spec.exchanges(outside, spec.slots(outside))) == 8


def test_one_copy_a_node_by_hand():
    """C_in = 9, 10 in two chunks; C_out = 4 and 6 copies of 3 weights: the far tier has slots for the other node's 2
    ranks' rails alone, 4 experts of 4 slots each.
    """
    setup, spec = setup_of(tiers=(9, 4), copies=6, top_k=3, chunks=2), dispatcher_spec("node_dedup")
    slots = spec.slots(setup)
    assert (slots.capacity, slots.intra_node, slots.copies, slots.expert_calls) == (4, 10, 6, (10, 10, 8))
    assert slots.send_rows == 4 * 10 + 2 * 6
    found = [(e.group, e.rows, e.extra, e.carries, e.backward) for e in spec.exchanges(setup, slots)]
    ways = [(carries, backward) for carries in (TOKENS, RESULTS) for backward in (False, True)]
    assert found[:4] == [("ep_rail", 12, 3 * (carries == TOKENS), carries, backward) for carries, backward in ways]
    assert found[4] == ("ep_rail", 2 * 16, 0, COUNTS, False)
    assert found[5:9] == [("ep_node", 16, 0, *way) for way in ways]
    assert found[9:] == [("ep_node", 20, 0, *way) for way in ways] * 2


@pytest.mark.parametrize(
    ("tiers", "copies", "found"),
    [((9, 4), None, 10), ((9, 4), 99, 10), ((9, 2), 9, 8), ((9, 4), 7, 7), ((9, 0), 7, 0)],
)
def test_copies_are_at_most_tokens_and_slots(tiers, copies, found):
    """10 tokens; 4 experts on a node."""
    slots = dispatcher_spec("node_dedup").slots(setup_of(tiers=tiers, copies=copies, top_k=2))
    assert slots.copies == found and slots.send_rows == 4 * 9 + 2 * found


def test_one_node_has_one_tier():
    setup = setup_of(Topology(4, 4, 4), tiers=(5, 5), copies=9, top_k=2)
    spec = dispatcher_spec("node_dedup")
    slots = spec.slots(setup)
    assert (slots.capacity, slots.intra_node, slots.copies, slots.expert_calls) == (0, 5, 0, (20,))
    assert {e.group for e in spec.exchanges(setup, slots)} == {"ep_node"}


def test_ragged_by_hand():
    """10 tokens, 2 choices: 20 rows leave; without a limit 4 x 10 tokens may come twice each, to regions of 40."""
    spec, setup = dispatcher_spec("ragged"), setup_of(top_k=2)
    slots = spec.slots(setup)
    assert (slots.capacity, slots.send_rows, slots.counted) == (40, 20, False)
    assert spec.slots(setup_of(top_k=2, ragged_limit=1.26)).capacity == 26  # 25.2 rows
    *_, counts = spec.exchanges(setup, slots)
    assert (counts.operation, counts.rows, counts.carries, counts.backward) == ("all_gather", 8, COUNTS, False)


def test_shares_are_gathered_at_home_and_at_the_experts():
    """Two ranks of a tensor-parallel group send 5 slots each of 10 for 4 experts of 2 ranks."""
    setup = setup_of(Topology(4, 2, 2, 2), ExpertPlacement(4, 1, 2), uniform=9, group_wise=True)
    slots = dispatcher_spec("flat").slots(setup)
    assert (slots.capacity, slots.send_rows, slots.expert_calls, slots.expert_rows) == (5, 20, (10,), 20)
    assert [(e.operation, e.rows, e.backward) for e in share_exchanges(slots)] == [
        ("all_gather", 20, True),
        ("all_gather", 20, False),
    ]
    assert [(e.operation, e.rows, e.carries, e.backward) for e in gateway_exchanges(slots, 2)] == [
        ("all_gather", 20, TOKENS, False),
        ("reduce_scatter", 40, TOKENS, True),
        ("reduce_scatter", 40, RESULTS, False),
        ("all_gather", 20, RESULTS, True),
    ]
    whole = dispatcher_spec("flat").slots(setup_of(uniform=9))
    assert share_exchanges(whole) == gateway_exchanges(whole, 2) == []


def test_uniform_table():
    table = uniform_slots(ExpertPlacement(4, 2, 2).position_of, 3)  # interleaved: experts 0, 2, 1, 3
    assert table.start.tolist() == [0, 6, 3, 9] and table.slots == 12
    assert [table.slot(1, rank) for rank in range(3)] == [6, 7, 8]


def test_two_tier_table_of_each_node():
    """Four own-node experts with 2 slots each first, then 1 slot for each of all eight."""
    for rank in range(4):
        table, own = two_tier_slots(setup_of(), rank, 2, 1), range(rank // 2 * 4, rank // 2 * 4 + 4)
        assert table.capacity.tolist() == [3 if expert in own else 1 for expert in range(8)]
        taken = [table.slot(expert, place) for expert in range(8) for place in range(table.capacity[expert])]
        assert sorted(taken) == list(range(16)) and table.slots == 16
        assert [table.slot(own[0], place) for place in range(3)] == [0, 1, 8 + own[0]]


def test_own_experts_may_have_slots_in_the_first_part_alone():
    for rank in range(4):
        table, own = two_tier_slots(setup_of(), rank, 2, 1, in_both=False), range(rank // 2 * 4, rank // 2 * 4 + 4)
        assert table.capacity.tolist() == [2 if expert in own else 1 for expert in range(8)]
        taken = [table.slot(expert, place) for expert in range(8) for place in range(table.capacity[expert])]
        empty = {8 + expert for expert in own}
        assert sorted(taken) == sorted(set(range(16)) - empty) and table.slots == 16


def test_a_subgroup_has_slots_for_its_own_experts():
    setup = setup_of(placement=ExpertSubgroup(EXPERTS, 2, 1), tiers=(3, 0))
    table = two_tier_slots(setup, 2, 3, 0)
    assert table.capacity.tolist() == [0] * 4 + [3] * 4 and table.slots == 12


def test_geometry_needs_no_mindspore():
    code = (
        "import sys; from locmoe_ops.dispatch.registry import dispatchers; assert len(dispatchers()) == 4; "
        "assert 'mindspore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
