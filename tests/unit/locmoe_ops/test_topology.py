"""Groups and placements against hand-written tables and against the defining formulas."""

import itertools

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import (
    GROUP_KINDS,
    STATISTICS,
    ExpertPlacement,
    ExpertSubgroup,
    Topology,
    count_blocks,
    devices_of_experts,
    local_experts_table,
    most_nodes,
    nodes_of_experts,
    numbered_nodes,
)

LAYOUTS = [(1, 1, 1, 1), (4, 2, 4, 1), (8, 4, 4, 1), (8, 2, 2, 2), (8, 4, 4, 2), (16, 4, 8, 2), (8, 8, 2, 1)]


def test_groups_of_eight_ranks_by_hand():
    topology = Topology(world_size=8, ranks_per_node=4, expert=2, tensor=2)

    assert topology.nodes == 2 and topology.data == 4 and topology.expert_data == 2
    assert topology.groups("world") == ((0, 1, 2, 3, 4, 5, 6, 7),)
    assert topology.groups("tp") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert topology.groups("ep") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert topology.groups("dp") == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert topology.groups("edp") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert topology.groups("node") == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert topology.groups("rail") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert topology.group_of("ep", 5) == (5, 7)


def test_parts_of_expert_parallel_groups_by_hand():
    """4 nodes of 2 ranks; two ranks side by side share tensors, so that an expert-parallel group has one rank on each
    node.
    """
    topology = Topology(world_size=8, ranks_per_node=2, expert=4, tensor=2)

    assert topology.groups("ep") == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert topology.groups("ep2") == ((0, 2), (1, 3), (4, 6), (5, 7)) == topology.groups("ep2_rail")
    assert topology.groups("ep1") == topology.groups("ep") == topology.groups("ep1_rail")
    assert topology.groups("ep4") == topology.groups("ep2_node") == tuple((rank,) for rank in range(8))
    assert Topology(8, 4, 8).groups("ep2_node") == ((0, 1, 2, 3), (4, 5, 6, 7)) == Topology(8, 4, 8).groups("ep2")
    assert Topology(8, 2, 8).groups("ep2_rail") == ((0, 2), (1, 3), (4, 6), (5, 7))
    with pytest.raises(InputError, match="3 subgroups of the expert-parallel group do not divide its 4 ranks"):
        topology.groups("ep3_node")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rank_formula(layout):
    topology = Topology(*layout)
    for rank in range(topology.world_size):
        edp, ep, tp = topology.edp_index(rank), topology.ep_index(rank), topology.tp_index(rank)
        assert (edp * topology.expert + ep) * topology.tensor + tp == rank
        assert topology.node_of(rank) == rank // topology.ranks_per_node


@pytest.mark.parametrize("kind", GROUP_KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_partition_the_ranks(layout, kind):
    topology = Topology(*layout)
    groups = topology.groups(kind)
    assert sorted(itertools.chain(*groups)) == list(range(topology.world_size))
    assert len({len(group) for group in groups}) == 1
    assert all(rank in topology.group_of(kind, rank) for rank in range(topology.world_size))


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        ((0, 1), "world_size is 0"),
        ((4, 3), "3 ranks a node do not divide 4"),
        ((4, 2, 3), "expert 3 x tensor 1 = 3 does not divide 4"),
        ((12, 4, 6), "one must divide the other"),
        ((4, 2, 2, 0), "tensor is 0"),
    ],
)
def test_impossible_layouts_are_named(arguments, fragment):
    with pytest.raises(InputError, match=fragment):
        Topology(*arguments)


def test_unknown_kind_and_rank():
    topology = Topology(4, 2)
    with pytest.raises(InputError, match="unknown group kind 'pp'"):
        topology.groups("pp")
    with pytest.raises(InputError, match="rank 4 is outside 0..3"):
        topology.node_of(4)


@pytest.mark.parametrize("kind", ["interleaved", "node_grouped"])
@pytest.mark.parametrize("experts, groups, ep", [(8, 2, 4), (8, 1, 2), (16, 4, 4), (6, 3, 1), (12, 2, 3)])
def test_placement_formula(kind, experts, groups, ep):
    placement = ExpertPlacement(experts, groups, ep, kind)
    per_group = experts // groups
    for group, index in itertools.product(range(groups), range(per_group)):
        expert = group * per_group + index
        position = index * groups + group if kind == "interleaved" else expert
        assert placement.position_of[expert] == position
        assert placement.expert_at[position] == expert
        assert placement.ep_index_of(expert) == position // (experts // ep)
    held = [placement.local_experts(i) for i in range(ep)]
    assert sorted(itertools.chain(*held)) == list(range(experts))
    assert all(placement.ep_index_of(expert) == i for i in range(ep) for expert in held[i])


def test_interleaved_spreads_and_node_grouped_gathers():
    assert ExpertPlacement(8, 2, 4, "interleaved").local_experts(1) == (1, 5)
    assert ExpertPlacement(8, 2, 4, "node_grouped").local_experts(1) == (2, 3)


def test_parts_of_a_placement_by_hand():
    """8 experts in 2 groups on 4 ranks: side by side, experts 0 to 3 are those of the first half; spread, 0, 4, 1 and
    5.
    """
    grouped, spread = (ExpertPlacement(8, 2, 4, kind) for kind in ("node_grouped", "interleaved"))
    first, second = (ExpertSubgroup(grouped, 2, index) for index in range(2))

    assert (first.group, first.ep, first.num_experts, first.experts_per_rank) == ("ep2", 2, 4, 2)
    assert first.position_of.tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert second.position_of.tolist() == [4, 4, 4, 4, 0, 1, 2, 3]
    assert ExpertSubgroup(spread, 2, 0).position_of.tolist() == [0, 2, 4, 4, 1, 3, 4, 4]
    assert grouped.group == "ep"


@pytest.mark.parametrize(
    "parts, index, fragment",
    [(3, 0, "3 subgroups do not divide 4 expert-parallel ranks"), (2, 2, r"subgroup 2 is outside 0\.\.1")],
)
def test_impossible_parts_are_named(parts, index, fragment):
    with pytest.raises(InputError, match=fragment):
        ExpertSubgroup(ExpertPlacement(8, 2, 4), parts, index)


def test_placement_tables_cannot_be_changed():
    placement = ExpertPlacement(8, 2, 4)
    assert placement.position_of.dtype == np.int32
    with pytest.raises(ValueError):
        placement.expert_at[0] = 3


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        ((8, 3, 1), "3 groups do not divide 8 experts"),
        ((8, 2, 3), "3 expert-parallel ranks do not divide 8 experts"),
        ((8, 2, 2, "scattered"), "kind 'scattered'"),
    ],
)
def test_impossible_placements_are_named(arguments, fragment):
    with pytest.raises(InputError, match=fragment):
        ExpertPlacement(*arguments)


def test_local_experts_by_hand():
    table = local_experts_table(Topology(4, 2, 4), ExpertPlacement(8, 2, 4, "node_grouped"))
    own, other = [True] * 4, [False] * 4
    assert table.tolist() == [own + other, own + other, other + own, other + own]


def test_replicas_on_every_node_make_all_experts_local():
    """Expert-parallel groups inside a node: each rank finds all experts at home."""
    table = local_experts_table(Topology(8, 4, 4), ExpertPlacement(8, 2, 4))
    assert table.all()


def test_local_experts_need_matching_degrees():
    with pytest.raises(InputError, match="degree 2 of the topology differs from 4"):
        local_experts_table(Topology(4, 2, 2), ExpertPlacement(8, 2, 4))


@pytest.mark.parametrize(
    ("topology", "placement", "nodes", "most"),
    [
        (Topology(4, 2, 4), ExpertPlacement(8, 2, 4, "node_grouped"), [0, 0, 0, 0, 1, 1, 1, 1], {1: 0, 2: 2, 8: 2}),
        (Topology(4, 2, 4), ExpertPlacement(8, 2, 4), [0, 0, 1, 1, 0, 0, 1, 1], {2: 2}),
        (Topology(4, 1, 4), ExpertPlacement(8, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], {2: 2, 3: 3, 8: 4}),
        (Topology(4, 4, 4), ExpertPlacement(8, 2, 4), [0] * 8, {2: 0, 8: 0}),
        (Topology(4, 2, 2), ExpertPlacement(8, 2, 2), [0] * 8, {8: 0}),  # each node has all experts
        (Topology(4, 1, 2), ExpertPlacement(4, 1, 2), [0, 0, 1, 1], {2: 2}),  # two replicas over two nodes each
    ],
)
def test_on_how_many_nodes_a_token_s_experts_can_be(topology, placement, nodes, most):
    table = local_experts_table(topology, placement)
    assert numbered_nodes(table).tolist() == nodes
    assert {k: most_nodes(k, table) for k in most} == most


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ((8, 2, 4), {"rank": 8, "node": 4, "expert_parallel": 2, "global": 1}),
        ((8, 4, 2), {"rank": 8, "node": 2, "expert_parallel": 4, "global": 1}),
        ((8, 4, 1), {"rank": 8, "node": 2, "expert_parallel": 8, "global": 1}),
        ((8, 4, 2, 2), {"rank": 8, "node": 2, "expert_parallel": 2, "global": 1}),
    ],
)
def test_sets_of_ranks_for_statistics(arguments, counts):
    assert {name: Topology(*arguments).count_sets(name) for name in STATISTICS} == counts


@pytest.mark.parametrize(
    ("owners", "blocks"),
    [
        ([[0, 0, 1, 1]], 2),
        ([[3, 3, 3]], 1),
        ([[0, 1, 2], [5, 4, 3]], 3),
        ([[0, 0, 1, 1], [2, 2, 2, 2]], None),
        ([[0, 1, 1, 1]], None),
        ([[0, 0, 1]], None),
        ([[0, 1, 1, 0]], None),
    ],
)
def test_blocks_of_experts(owners, blocks):
    if blocks is None:
        with pytest.raises(InputError, match="do not lie in equal blocks"):
            count_blocks(np.array(owners))
    else:
        assert count_blocks(np.array(owners)) == blocks


def test_devices_and_nodes_of_experts():
    """Eight experts of two groups on four ranks, two a node: a group's experts go round, or lie side by side."""
    interleaved, grouped = ExpertPlacement(8, 2, 4), ExpertPlacement(8, 2, 4, "node_grouped")
    assert devices_of_experts(interleaved).tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert devices_of_experts(grouped).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert nodes_of_experts(Topology(4, 2, 4), grouped).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
