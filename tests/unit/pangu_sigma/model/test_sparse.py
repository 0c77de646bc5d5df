import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from locmoe_ops.dispatch.group_wise import AllGatherSlots
from locmoe_ops.dispatch.ragged import RaggedDispatcher
from locmoe_ops.errors import InputError
from locmoe_ops.routers.hash import HashRouter
from locmoe_ops.routers.locmoe import LocMoERouter
from locmoe_ops.routers.switch import SwitchRouter
from locmoe_ops.tensor_parallel import TensorGroup
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.model.capacity_rules import SlotRules, resolve_layout
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.sparse import (
    SparseContext,
    build_dispatcher,
    build_router,
    build_sparse_layer,
    experts_in_play,
    groups_without_local_experts,
    homes_of_ids,
    locality_advice,
)


@pytest.fixture
def make_context(networks):
    def make(moe=None, rank=0, ranks=1, expert=1, domains=2, token_counts=None, **sections):
        config = networks.small_config(None, {"num_experts": 8, **(moe or {})}, **sections)
        collectives = networks.TwinCollectives(rank, Topology(ranks, ranks, expert))
        return SparseContext(config, model_dims(config, 3, networks.VOCABULARY, domains), collectives, token_counts)

    return make


def test_layout_is_the_job_unless_given(networks):
    job = Topology(2, 2, 2)
    assert resolve_layout(networks.small_config(), job) == job
    given = {"logical_topology": {"world_size": 8, "ranks_per_node": 4, "expert": 4}}
    assert resolve_layout(networks.small_config(None, given), job) == Topology(8, 4, 4)


@pytest.mark.parametrize(
    "kind, chunks, expected",
    [
        ("flat", 1, {"capacity": 5}),  # ceil(1.0 x 36 tokens / 4 experts) = 9 slots, 10 in halves
        ("flat", 2, {"capacity": 6}),  # 12 in halves of two chunks each
        (
            "hierarchical",
            2,
            {"intra": 4, "inter": 3},
        ),  # C_out = ceil(9 / 2) = 5, 6 in halves; C_in = ceil(27 / 2) = 14, 8 more
    ],
)
def test_group_wise_dispatch_sends_half_of_the_slots(networks, kind, chunks, expected):
    config = networks.small_config(
        None,
        {
            "num_experts": 4,
            "num_groups": 1,
            "capacity": {"factor": 1.0, "local_share": 0.75},
            "dispatch": {"type": kind, "chunks": chunks, "group_wise": True},
        },
    )
    collectives = networks.TwinCollectives(0, Topology(4, 2, 2, 2))
    context = SparseContext(config, model_dims(config, 3, 30, 1, TensorGroup(collectives)), collectives)
    layer = build_sparse_layer(context, 0)
    assert {name: getattr(layer.dispatcher, name) for name in expected} == expected
    assert layer.experts.w_in.shape == (2, 16, 10) and isinstance(layer.experts.copy_in, AllGatherSlots)


def test_a_tensor_parallel_group_is_one_place(networks):
    """Two nodes of two groups of two ranks: four places that hold rows of their own."""
    assert resolve_layout(networks.small_config(), Topology(8, 4, 4, 2)) == Topology(4, 2, 4)


@pytest.mark.parametrize(
    "moe, domains, expected",
    [
        ({"num_groups": 1}, 3, (0, 0, 0)),
        ({"num_groups": 4}, 4, (0, 1, 2, 3)),
        ({"num_groups": 2, "domain_groups": [1, 0, 1]}, 3, (1, 0, 1)),
    ],
)
def test_domain_groups(make_context, moe, domains, expected):
    assert tuple(make_context(moe, domains=domains).domain_groups) == expected


@pytest.mark.parametrize(
    "moe, placement, expected",
    [
        (
            {"capacity": {"factor": 1.0, "local_share": 0.75}},
            "shuffled",
            (18, 6),
        ),  # 96 tokens: 72 over 4 experts here, 24 over 4 there
        ({"capacity": {"factor": 1.0}}, "shuffled", (12, 12)),  # as many here as there: 96 over 8
        ({"capacity": {"factor": 1.0, "local_share": 1.0}}, "shuffled", (24, 0)),
        (
            {"capacity": {"factor": 1.0}, "expert_placement": "node_grouped"},
            "domain_by_node",
            (24, 0),
        ),  # all experts of its domain
        (
            {"capacity": {"factor": 1.0, "local_share": 0.75}, "expert_placement": "node_grouped"},
            "domain_by_node",
            (18, 0),
        ),
    ],
)
def test_slots_of_two_tiers(moe, placement, expected):
    """2 nodes of 2 ranks, 8 experts in 2 groups."""
    config = config_from_dict({"moe": {"num_experts": 8, "num_groups": 2, **moe}, "data": {"placement": placement}})
    rules = SlotRules(config, Topology(4, 2, 4), domains=2, tokens=96)
    for evaluation in (False, True):
        assert rules.tier_capacities(rules.placement, config.moe.capacity.factor, evaluation) == expected


def _chance(top_k, experts, held):
    """Of all sets of `top_k` of so many experts, the share that has one of those held."""
    sets = list(combinations(range(experts), top_k))
    return sum(any(expert < held for expert in one) for one in sets) / len(sets)


@pytest.mark.parametrize(
    ("moe", "nodes", "share"),
    [
        ({}, 2, _chance(1, 4, 2)),  # each node has 2 of a group's 4 experts
        ({"router": {"top_k": 2}}, 2, _chance(2, 4, 2)),
        ({"router": {"top_k": 4}}, 2, 1.0),
        ({"router": {"top_k": 2}}, 4, _chance(2, 4, 1)),
        ({"num_groups": 1, "router": {"top_k": 4}}, 2, _chance(4, 8, 4)),
        ({"num_groups": 1, "router": {"top_k": 8}}, 4, 1.0),
        # A group's four experts lie on one node: half of the tokens go there, each with all of its choices.
        ({"router": {"top_k": 2}, "expert_placement": "node_grouped"}, 2, 0.5),
        ({"router": {"top_k": 2}, "capacity": {"node_share": 0.3}}, 2, 0.3),
        # A quarter of the assignments leaves in place of a half: as if there were half as many experts.
        ({"router": {"top_k": 2}, "capacity": {"local_share": 0.75}}, 2, 1 - (1 - 1 / 4) * (1 - 1 / 3)),
    ],
)
def test_copies_to_a_node(moe, nodes, share):
    """8 experts, 2 groups, 96 tokens; factor 1, or one that makes room for all."""
    config = config_from_dict({"moe": {"num_experts": 8, "num_groups": 2, "dispatch": {"type": "node_dedup"}, **moe}})
    rules = SlotRules(config, Topology(4, 4 // nodes, 4), domains=2, tokens=96)
    assert rules.dispatch_setup(rules.placement, 1.0).capacities.copies == math.ceil(round(96 * share, 6))
    assert rules.dispatch_setup(rules.placement, 4.0).capacities.copies == 96
    unruled = replace(config, moe=replace(config.moe, evaluation_rules="none"))
    rules = SlotRules(unruled, Topology(4, 4 // nodes, 4), domains=2, tokens=96)
    assert rules.dispatch_setup(rules.placement, 0.1, evaluation=True).capacities.copies == 96


@pytest.mark.parametrize(
    "share, placement, expected",
    [
        (0.75, "shuffled", (18, 12)),  # 72 of 96 tokens over 4 experts here; with the term off, 48 over 4 there
        (0.25, "shuffled", (12, 18)),
        (1.0, "shuffled", (24, 12)),
        (None, "shuffled", (12, 12)),
        (1.0, "domain_by_node", (24, 0)),  # a domain's experts are all on its node: term or none, nothing leaves
    ],
)
def test_evaluation_has_slots_with_the_local_term_on_and_off(share, placement, expected):
    experts = {"shuffled": "interleaved", "domain_by_node": "node_grouped"}[placement]
    moe = {
        "num_experts": 8,
        "num_groups": 2,
        "expert_placement": experts,
        "capacity": {"local_share": share},
        "router": {"type": "locmoe", "locality_bias": {"kind": "margin"}},
    }
    config = config_from_dict({"moe": moe, "data": {"placement": placement}})
    rules = SlotRules(config, Topology(4, 2, 4), domains=2, tokens=96)
    assert rules.tier_capacities(rules.placement, 1.0, evaluation=True) == expected


@pytest.mark.parametrize(
    "nodes, options, placement, shares",
    [
        (2, {}, "shuffled", (0.5, 0.25, 0.125, 0.0)),
        (2, {"buckets": 2}, "shuffled", (0.5, 0.0)),
        (4, {"buckets": 3}, "shuffled", (0.75, 0.375, 0.0)),
        (1, {}, "shuffled", (0.0,)),  # nothing can leave
        (2, {}, "domain_by_node", (0.0,)),
    ],
)
def test_shares_that_the_far_tier_may_have_room_for(nodes, options, placement, shares):
    """As many ranks as nodes, or 2 of one node; 8 experts in 2 groups, of which each node of 4 holds one a group."""
    config = config_from_dict(
        {
            "moe": {
                "num_experts": 8,
                "num_groups": 2,
                "expert_placement": {"shuffled": "interleaved", "domain_by_node": "node_grouped"}[placement],
                "capacity": {"measured_share": options},
            },
            "data": {"placement": placement},
        }
    )
    ranks = max(nodes, 2)
    rules = SlotRules(config, Topology(ranks, ranks // nodes, ranks), domains=2, tokens=96)
    assert rules.far_shares() == shares


@pytest.mark.parametrize(
    "bucket, expected",
    [
        # 96 tokens, 4 experts a node: (near, far) slots an expert. Near: what may stay until the next bucket is taken,
        # at hysteresis 0.2: 1 - 0.25 * 0.8 = 0.8 of 96 over 4; 1 - 0.125 * 0.8 = 0.9; then all
        (0, (20, 12)),
        (1, (22, 6)),
        (2, (24, 3)),
        (3, (24, 0)),
    ],
)
def test_slots_of_a_measured_share_by_hand(bucket, expected):
    """2 nodes of 2 ranks. Evaluation has room for all at home and an even spread elsewhere; a job of one node has one
    tier.
    """
    moe = {"num_experts": 8, "num_groups": 2, "capacity": {"measured_share": {"hysteresis": 0.2}}}
    config = config_from_dict({"moe": moe})
    rules = SlotRules(config, Topology(4, 2, 4), domains=2, tokens=96)
    assert rules.tier_capacities(rules.placement, 1.0, bucket=bucket) == expected
    assert rules.tier_capacities(rules.placement, 1.0, evaluation=True) == (24, 12)
    layout = {"world_size": 4, "ranks_per_node": 2, "expert": 4}
    alone = SlotRules(
        config_from_dict({"moe": {**moe, "logical_topology": layout}}), Topology(1, 1), domains=2, tokens=96
    )
    assert len(alone.far_shares()) == 4
    assert alone.tier_capacities(alone.placement, 1.0, bucket=bucket) == (12, 12)


@pytest.mark.parametrize(
    "moe, placement, expected",
    [
        ({"capacity": {"local_share": 1.0}}, "shuffled", (96, 96)),
        ({"router": {"locality_bias": {"kind": "margin"}}}, "shuffled", (96, 96)),
        ({"capacity": {"measured_share": {}}}, "shuffled", (96, 96)),
        ({"router": {"top_k": 2}}, "shuffled", (96, 96)),
        ({"expert_placement": "node_grouped"}, "domain_by_node", (96, 0)),  # nothing can leave
    ],
)
def test_evaluation_without_rules_has_a_slot_for_every_token(moe, placement, expected):
    moe = {"num_experts": 8, "num_groups": 2, "evaluation_rules": "none", **moe}
    config = config_from_dict({"moe": moe, "data": {"placement": placement}})
    rules = SlotRules(config, Topology(4, 2, 4), domains=2, tokens=96)
    for factor in (0.1, 2.0):
        found = rules.dispatch_setup(rules.placement, factor, evaluation=True).capacities
        assert (found.uniform, found.tiers) == (96, expected)
    training = rules.dispatch_setup(rules.placement, 1.0).capacities
    assert training.uniform < 96 and max(training.tiers) < 96


def test_a_node_that_keeps_its_tokens_holds_experts_for_them():
    """4 nodes of 1 rank, two experts a domain: where a group is spread over all nodes, half of them hold none of their
    domain's.
    """
    moe = {"num_experts": 4, "num_groups": 2, "capacity": {"local_share": 1.0}}
    config = config_from_dict({"moe": moe, "data": {"placement": "domain_by_node"}})
    rules = SlotRules(config, Topology(4, 1, 4), domains=2, tokens=96)
    assert rules.tier_capacities(ExpertPlacement(4, 2, 4, "node_grouped"), 1.0) == (96, 0)
    with pytest.raises(InputError, match="local_share is 1.0, but node . holds no expert"):
        rules.tier_capacities(ExpertPlacement(4, 2, 4, "interleaved"), 1.0)


@pytest.mark.parametrize(
    "topology, groups, placement, data, layout, parts",
    [
        ((4, 2, 4), 2, "node_grouped", "domain_by_node", None, 2),  # a domain's rows and experts on one of two nodes
        ((4, 1, 4), 2, "node_grouped", "domain_by_node", None, 2),  # on two of four nodes
        ((4, 1, 4), 4, "node_grouped", "domain_by_node", None, 4),
        ((4, 1, 4), 2, "node_grouped", "domain_cluster_by_node", None, 2),
        ((4, 2, 4), 2, "node_grouped", "clustered", None, 1),  # a cluster may hold text of both domains
        ((8, 2, 8), 2, "node_grouped", "domain_by_node", None, 2),
        ((8, 4, 4, 2), 2, "node_grouped", "domain_by_node", None, 2),  # a tensor-parallel pair is one place
        ((4, 2, 4), 2, "node_grouped", "shuffled", None, 1),  # any domain on any node
        ((4, 2, 4), 2, "interleaved", "domain_by_node", None, 1),  # experts of a domain on all ranks
        ((4, 2, 2), 2, "node_grouped", "domain_by_node", None, 1),  # each node has all experts
        (
            (6, 2, 6),
            2,
            "node_grouped",
            "domain_by_node",
            None,
            1,
        ),  # three nodes: the second one's experts are of both groups
        ((4, 2, 4), 1, "node_grouped", "domain_by_node", None, 1),
        (
            (4, 2, 4),
            2,
            "node_grouped",
            "domain_by_node",
            {"world_size": 8, "ranks_per_node": 2, "expert": 8},
            1,
        ),  # rows of other nodes
    ],
)
def test_parts_that_exchange_by_themselves(topology, groups, placement, data, layout, parts):
    moe = {"num_experts": 24, "num_groups": groups, "expert_placement": placement, "logical_topology": layout}
    rules = SlotRules(
        config_from_dict({"moe": moe, "data": {"placement": data}}), Topology(*topology), domains=groups, tokens=96
    )
    assert rules.num_subgroups() == parts
    topology, rank_location = rules.topology, rules.placement.ep_index_of
    for rank in range(topology.world_size):  # whatever its tokens may choose has a place in its own part
        exchange, reachable = (
            rules.exchange_of(rank),
            rules.experts_by_node()[topology.node_of(rank)] if layout is None else range(24),
        )
        assert exchange.ep == topology.expert // parts
        for expert in reachable:
            assert rank_location(expert) // exchange.ep == topology.ep_index(rank) // exchange.ep
            assert exchange.position_of[expert] < exchange.num_experts


NODES_OF_ONE = {"logical_topology": {"world_size": 4, "ranks_per_node": 1, "expert": 4}}


@pytest.mark.parametrize(
    "moe, domains, placement, expected",
    [
        ({"num_groups": 1}, 2, "shuffled", 8),
        ({"num_groups": 2}, 2, "shuffled", 8),
        ({"num_groups": 4, "domain_groups": [0, 2]}, 2, "shuffled", 4),  # two of four groups have a domain
        ({"num_groups": 4, "domain_groups": [0, 0, 3]}, 3, "shuffled", 4),
        ({"num_groups": 4, **NODES_OF_ONE}, 4, "domain_by_node", 2),  # a node sees one group
        ({"num_groups": 2, **NODES_OF_ONE}, 2, "domain_by_node", 4),
        ({"num_groups": 4}, 4, "domain_by_node", 8),  # the one node sees all of them
    ],
)
def test_experts_in_play(make_context, moe, domains, placement, expected):
    assert experts_in_play(make_context(moe, domains=domains, data={"placement": placement})) == expected


@pytest.mark.parametrize("factor, top_k, expected", [(1.0, 1, 5), (1.25, 1, 6), (1.0, 2, 9), (100.0, 1, 36)])
def test_capacity_follows_the_factor(make_context, factor, top_k, expected):
    """36 tokens over 8 experts: 4.5 each; never more slots than tokens."""
    context = make_context({"router": {"type": "switch", "top_k": top_k}})
    placement = ExpertPlacement(8, 2, 1)
    assert build_dispatcher(context, placement, factor, "tag").capacity == expected


@pytest.mark.parametrize("limit, rows", [(None, 72), (1.5, 54)])
def test_ragged_dispatch_makes_room_for_its_limit(make_context, limit, rows):
    """36 tokens of each of two ranks, whatever the capacity factor."""
    context = make_context({"dispatch": {"type": "ragged", "ragged_limit": limit}}, ranks=2, expert=2)
    dispatcher = build_dispatcher(context, ExpertPlacement(8, 2, 2), 0.1, "tag")
    assert isinstance(dispatcher, RaggedDispatcher) and dispatcher.capacity == rows


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
@pytest.mark.parametrize("overflow", ["drop", "repick"])
def test_overflow_reaches_router_and_dispatchers(make_context, kind, overflow):
    layer = build_sparse_layer(make_context({"dispatch": {"type": kind, "overflow": overflow}}), 0)
    repicks = overflow == "repick"
    assert layer.repicks == layer.routing.router.offers_second == layer.evaluation_dispatcher.repicks == repicks


def test_hash_router_draws_its_table_from_seed_and_layer(make_context):
    moe = {"router": {"type": "hash"}}
    placement = ExpertPlacement(8, 2, 1)
    tables = {
        (seed, layer): build_router(make_context(moe, train={"seed": seed}), layer, placement).table.asnumpy()
        for seed in (1, 2)
        for layer in (0, 1)
    }
    for table in tables.values():
        assert table.shape == (2, 29)
        for row in table:
            counts = np.bincount(row, minlength=4)
            assert counts.max() - counts.min() <= 1
    assert len({table.tobytes() for table in tables.values()}) == 4


def test_frequent_words_are_spread_by_the_frequency_map(make_context):
    counts = np.ones((2, 29), np.int64)
    counts[0, :4] = counts[1, 4:8] = 1000  # in each group one for each of its four experts
    context = make_context({"router": {"type": "hash", "hash": {"balance": "frequency"}}}, token_counts=counts)
    first, second = build_router(context, 0, ExpertPlacement(8, 2, 1)).table.asnumpy()
    assert sorted(first[:4]) == sorted(second[4:8]) == [0, 1, 2, 3]


@pytest.mark.parametrize("counts", [None, np.random.default_rng(0).integers(0, 9, (2, 29))])
def test_codes_send_ids_where_the_balanced_map_does(make_context, counts):
    placement, balance = ExpertPlacement(8, 2, 1), "uniform" if counts is None else "frequency"
    table = build_router(
        make_context({"router": {"type": "hash", "hash": {"balance": balance}}}, token_counts=counts), 1, placement
    ).table
    codes = build_router(
        make_context({"router": {"type": "locmoe", "locmoe": {"gate_input": "code"}}}, token_counts=counts),
        1,
        placement,
    ).gate.codes
    np.testing.assert_array_equal(codes.asnumpy().argmax(-1), table.asnumpy())


def test_homes_of_ids_are_counted_layer_by_layer(make_context):
    """Two layers of eight experts in two groups, on two nodes of one rank."""
    layout = {"world_size": 2, "ranks_per_node": 1, "expert": 2}
    context = make_context({"router": {"type": "hash"}, "logical_topology": layout})
    layers = [build_sparse_layer(context, number) for number in (0, 1)]
    found = homes_of_ids(context.config, context.layout, layers)
    tables = [layer.routing.router.table.asnumpy() for layer in layers]
    for node, group, token_id in np.ndindex(2, 2, 29):
        # Interleaved: experts 0 and 1 of each group on rank 0, 2 and 3 on rank 1.
        expected = sum(table[group, token_id] // 2 == node for table in tables)
        assert found[node, group, token_id] == expected


def test_a_cooccurrence_map_needs_text_to_find_nodes_and_else_balances_by_frequency(make_context):
    layout = {"world_size": 2, "ranks_per_node": 1, "expert": 2}
    rng, placement = np.random.default_rng(0), ExpertPlacement(8, 2, 2)
    counts, nodes = rng.integers(0, 9, (2, 29)), rng.integers(0, 2, (2, 29))

    def table(balance, id_nodes):
        moe = {"router": {"type": "hash", "hash": {"balance": balance}}, "logical_topology": layout}
        context = replace(make_context(moe, token_counts=counts), id_nodes=id_nodes)
        return build_router(context, 0, placement).expert_by_id()

    assert (table("cooccurrence", nodes) // 2 == nodes).all()
    assert (table("cooccurrence", None) == table("frequency", None)).all()


def test_router_options_arrive(make_context):
    placement = ExpertPlacement(8, 2, 1)
    switch = build_router(
        make_context(
            {
                "router": {
                    "type": "switch",
                    "top_k": 2,
                    "statistics": "node",
                    "switch": {"aux_loss_weight": 0.5, "jitter": 0.1},
                }
            }
        ),
        0,
        placement,
    )
    assert isinstance(switch, SwitchRouter)
    assert (switch.top_k, switch.aux_loss_weight, switch.jitter) == (2, 0.5, 0.1)
    own = {"gate": "dense", "aux_loss_weight": 0.2, "locality_loss_weight": 0.3, "locality_smoothing": 0.4}
    locmoe = build_router(make_context({"router": {"type": "locmoe", "locmoe": own}}), 0, placement)
    assert isinstance(locmoe, LocMoERouter)
    assert (locmoe.aux_loss_weight, locmoe.locality_loss_weight, locmoe.smoothing) == (0.2, 0.3, 0.4)
    assert isinstance(build_router(make_context({"router": {"type": "hash"}}), 0, placement), HashRouter)


@pytest.mark.parametrize("rank, expected", [(0, (0, 4)), (1, (1, 5)), (2, (2, 6)), (3, (3, 7))])
def test_a_rank_holds_its_experts_and_no_others(make_context, rank, expected):
    """Eight experts of two groups, interleaved over four ranks."""
    layer = build_sparse_layer(make_context(rank=rank, ranks=4, expert=4), 0)
    assert layer.experts.local_experts == expected
    assert layer.experts.w_in.shape == (2, 16, 20)


def test_evaluation_has_slots_of_its_own(make_context):
    layer = build_sparse_layer(make_context({"capacity": {"factor": 1.0, "evaluation_factor": 2.0}}), 0)
    assert (layer.dispatcher.capacity, layer.evaluation_dispatcher.capacity) == (5, 9)


@pytest.mark.parametrize("groups, domains", [(2, 3), (4, 3)])
def test_domains_and_groups_that_do_not_match_are_refused(make_context, groups, domains):
    with pytest.raises(InputError, match="domain_groups"):
        build_sparse_layer(make_context({"num_groups": groups}, domains=domains), 0)


@pytest.fixture
def context_on_nodes(make_context):
    """Of one rank, with a layout of `nodes` nodes of a rank each."""

    def make(groups, experts, nodes, placement="interleaved", data="shuffled", router="locmoe"):
        moe = {
            "num_experts": experts,
            "num_groups": groups,
            "expert_placement": placement,
            "router": {"type": router},
            "logical_topology": {"world_size": nodes, "ranks_per_node": 1, "expert": nodes},
        }
        return make_context(moe, domains=groups, data={"placement": data})

    return make


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((1, 8, 4), {}),
        ((2, 8, 4), {}),  # four experts a group, one on each node
        (
            (4, 8, 4),
            {0: [2, 3], 1: [0, 1], 2: [2, 3], 3: [0, 1]},
        ),  # expert j of group g at position 4 j + g, two positions a node
        ((2, 4, 4), {0: [1], 1: [0], 2: [1], 3: [0]}),  # one expert a node, of one group
        ((2, 4, 4, "node_grouped"), {0: [1], 1: [1], 2: [0], 3: [0]}),
        ((4, 8, 4, "node_grouped", "domain_by_node"), {}),  # nodes see only the domain whose group they hold
    ],
)
def test_groups_that_a_node_has_no_expert_of(context_on_nodes, arguments, expected):
    assert groups_without_local_experts(context_on_nodes(*arguments)) == expected


def test_advice_names_node_and_group(context_on_nodes):
    lines = locality_advice(context_on_nodes(2, 4, 4))
    assert lines[0].startswith("warning: 4 of 4 nodes hold no expert for some of their tokens (node 0: group 1)")
    assert "moe.num_experts / moe.num_groups is 2; with 4 or more" in lines[1]


@pytest.mark.parametrize("arguments", [(1, 8, 4), (2, 4, 1), (2, 4, 4, "interleaved", "shuffled", "switch")])
def test_no_advice_where_there_is_none_to_give(context_on_nodes, arguments):
    assert locality_advice(context_on_nodes(*arguments)) == []
