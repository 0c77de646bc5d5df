"""What a configuration leaves open and the planner must know: ranks, batches, words and domains; and its slots against
those of the built dispatchers.
"""

from fractions import Fraction
from math import ceil

import pytest

from locmoe_ops.dispatch.group_wise import ScatterToTpRegion
from locmoe_ops.errors import InputError
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.planner.job import layer_slots, plan_job, planned_factor
from pangu_sigma.planner.memory import expert_rows
from pangu_sigma.planner.predict import rank_flops


def test_batches(make_job):
    """8 rows of 12 tokens over 4 data-parallel ranks of 2 tensor-parallel ones."""
    job = make_job(2, 4, parallel={"expert": 2, "tensor": 2}, train={"micro_batch_size": 1})
    assert (job.topology.data, job.rows, job.micro_batches, job.tokens, job.global_tokens) == (4, 1, 2, 12, 96)
    whole = make_job(2, 4, parallel={"expert": 2, "tensor": 2})
    assert (whole.rows, whole.micro_batches) == (2, 1)


def test_layers(make_job):
    job = make_job(model={"dense_layers": 3, "sparse_layers": 2, "sparse_query_layer": True})
    assert (job.blocks, job.dense_layers, job.sparse_layers) == (5, 3, 3)


def test_prepared_data_says_words_and_domains(make_config, tiny_data):
    data = PreparedData.open(str(tiny_data))
    config = make_config(model={"vocab_size": None, "sequence_length": 32}, data={"path": str(tiny_data)})
    job = plan_job(config, 1, 1)
    assert (job.words, job.domains) == (data.vocab_size, len(data.domains))


@pytest.mark.parametrize(
    ("data", "moe", "expected"),
    [
        ({}, {}, (8000, 2)),  # the tokenizer to be trained has 8000 pieces by default
        ({"vocab_size": 500, "sources": {"a": "a", "b": "b", "c": "c"}}, {"num_groups": 1}, (500, 3)),
        ({}, {"domain_groups": [0, 1, 1]}, (8000, 3)),
    ],
)
def test_data_to_be_prepared(make_config, data, moe, expected):
    config = make_config(model={"vocab_size": None}, data={"prepare": data}, moe=moe)
    job = plan_job(config, 1, 1)
    assert (job.words, job.domains) == expected


FLAT, TIERS = "flat", "hierarchical"
CASES = [
    ((2, 2), {"expert": 4}, {"dispatch": {"type": FLAT}}),
    ((2, 2), {"expert": 4}, {"dispatch": {"type": FLAT, "chunks": 3}, "capacity": {"factor": 1.7}}),
    ((2, 4), {"expert": 2, "tensor": 4}, {"dispatch": {"type": FLAT, "chunks": 2, "group_wise": True}}),
    ((1, 1), {}, {"dispatch": {"type": FLAT, "chunks": 4}}),
    ((2, 2), {"expert": 4}, {"dispatch": {"type": TIERS}, "capacity": {"local_share": 0.75}}),
    (
        (2, 2),
        {"expert": 4},
        {"dispatch": {"type": TIERS, "chunks": 2}, "capacity": {"local_share": 0.95, "factor": 2.0}},
    ),
    ((2, 2), {"expert": 4}, {"dispatch": {"type": TIERS}, "capacity": {"local_share": 1.0}}),
    ((2, 2), {"expert": 2}, {"dispatch": {"type": TIERS}}),
    (
        (2, 4),
        {"expert": 4, "tensor": 2},
        {"dispatch": {"type": TIERS, "group_wise": True}, "capacity": {"local_share": 0.9}},
    ),
    ((1, 4), {"expert": 4}, {"dispatch": {"type": TIERS}}),
    ((2, 2), {"expert": 4}, {"dispatch": {"type": "ragged"}}),
    ((2, 2), {"expert": 4}, {"dispatch": {"type": "ragged", "ragged_limit": 1.5}, "router": {"top_k": 2}}),
    ((2, 2), {"expert": 4}, {"expert_placement": "node_grouped", "dispatch": {"type": TIERS}}),
    ((4, 1), {"expert": 4}, {"expert_placement": "node_grouped", "dispatch": {"type": TIERS}}),
    ((4, 1), {"expert": 4}, {"expert_placement": "node_grouped", "dispatch": {"type": FLAT}}),
    ((4, 1), {"expert": 4}, {"expert_placement": "node_grouped", "dispatch": {"type": "ragged"}}),
    # With domain_by_node each rank is a subgroup by itself, but its slots are shared out all the same.
    (
        (2, 2),
        {"expert": 2, "tensor": 2},
        {"expert_placement": "node_grouped", "dispatch": {"type": FLAT, "group_wise": True}},
    ),
]


@pytest.mark.parametrize(("cluster", "parallel", "moe"), CASES)
@pytest.mark.parametrize("placement", ["shuffled", "domain_by_node"])
def test_slots_are_those_of_the_dispatcher(make_job, build, cluster, parallel, moe, placement):
    job = make_job(*cluster, parallel=parallel, moe=moe, data={"placement": placement})
    dispatcher = build(job).blocks[1].feed_forward.dispatcher
    slots = layer_slots(job)
    if moe["dispatch"]["type"] == TIERS:
        assert (slots.capacity, slots.intra_node) == (dispatcher.inter, dispatcher.intra)
    else:
        assert slots.capacity == dispatcher.capacity
    assert dispatcher.expert_rows * slots.shares == slots.expert_rows
    assert isinstance(dispatcher.own_share, ScatterToTpRegion) == (slots.shares > 1)
    # Slots of the send buffer: as many as the experts of all ranks that exchange with this one get rows from it.
    if slots.counted:
        ranks = job.exchange.ep
        received = slots.expert_rows * job.experts_per_rank * ranks
        neighbours, nodes = getattr(dispatcher, "neighbours", 1), getattr(dispatcher, "nodes", 1)
        assert received == dispatcher.slots.permutation.slots * ranks and neighbours * nodes in (1, ranks)


@pytest.mark.parametrize(("limit", "room"), [(None, 2 * 96), (1.5, 72), (1.3, 63), (1.01, 49)])
def test_experts_with_unequal_groups_share_the_rows_that_there_is_room_for(make_job, build, limit, room):
    """24 tokens of two choices on each of 4 ranks of 2 experts: 48 rows at an even load. No slots of an expert."""
    job = make_job(
        2,
        2,
        parallel={"expert": 4},
        moe={"dispatch": {"type": "ragged", "ragged_limit": limit}, "router": {"top_k": 2}},
        runtime={"device": "ascend", "chip": "910b", "precision": "fp16", "fused": {"experts": True}},
    )
    dispatcher, slots = build(job).blocks[1].feed_forward.dispatcher, layer_slots(job)
    assert dispatcher.room == room == slots.rows_of_all == expert_rows(job)
    assert dispatcher.regions.column.shape == (room, 1) and dispatcher.limits_rows == (limit is not None)
    served = 6 * job.tokens * job.micro_batches * 2 * 2 * 16 * 24  # forward and backward, two products of d x f
    assert rank_flops(job)["experts"] == served


def test_rows_by_hand(make_job):
    """2 nodes x 2 ranks, 2 experts each: 2 rows x 12 tokens; flat 24 x 1.25 / 8 = 4 slots for each source rank; in two
    tiers with 3/4 at home 24 x 1.25 x 3/4 / 4 = 6 of the own node, 2 of the other, so 4 in the near tier from 2
    neighbours, 2 in the far tier from 4.
    """
    flat = layer_slots(make_job(2, 2, parallel={"expert": 4}))
    assert (flat.capacity, flat.expert_calls) == (4, (16,))
    tiers = layer_slots(
        make_job(2, 2, parallel={"expert": 4}, moe={"dispatch": {"type": TIERS}, "capacity": {"local_share": 0.75}})
    )
    assert (tiers.capacity, tiers.intra_node, tiers.expert_calls) == (2, 4, (8, 8))


def test_a_measured_share_is_planned_with_the_largest_far_tier(make_job):
    """24 tokens a rank, factor 1.25: 30 over 8 experts elsewhere, as in an even spread; and near 1 - 0.25 * 0.9 of 30
    over 4.
    """
    job = make_job(
        2,
        2,
        parallel={"expert": 4},
        moe={"dispatch": {"type": TIERS}, "capacity": {"factor": 1.25, "measured_share": {}}},
    )
    tiers = layer_slots(job)
    assert (tiers.capacity, tiers.capacity + tiers.intra_node) == (4, 6)


def test_measured_capacities_are_planned_at_their_most(make_job):
    whole = make_job(moe={"capacity": {"mode": "critical"}})
    assert planned_factor(whole) == 8.0 and layer_slots(whole).capacity == whole.tokens
    bounded = make_job(moe={"capacity": {"mode": "adaptive", "maximum_factor": 1.5}})
    assert layer_slots(bounded).capacity == ceil(Fraction(3, 2) * bounded.tokens / 8)


@pytest.mark.parametrize(
    ("sources", "nodes", "layout", "refused"),
    [
        (1, 2, None, True),
        (1, 1, None, False),
        (1, 1, {"world_size": 2, "ranks_per_node": 1, "expert": 2}, True),
        (2, 2, None, False),
        (0, 2, None, False),  # which domains there will be is not known
    ],
)
def test_placement_of_the_only_domain_is_refused(make_config, sources, nodes, layout, refused):
    prepare = {"sources": {f"domain{i}": "text" for i in range(sources)}}
    data = {"placement": "domain_by_node", "prepare": prepare}
    config = make_config(model={"vocab_size": None}, data=data, moe={"num_groups": 1, "logical_topology": layout})
    if refused:
        with pytest.raises(InputError, match="domain_by_node places domains on 2 nodes, but the data has one"):
            plan_job(config, nodes, 1)
    else:
        assert plan_job(config, nodes, 1).domains == max(1, sources)


def test_a_divergence_loss_over_the_only_domain_is_refused(make_config):
    moe = {"num_groups": 1, "router": {"locmoe": {"divergence_loss_weight": 0.1}}}
    for sources in (1, 2):
        data = {"prepare": {"sources": {f"domain{i}": "text" for i in range(sources)}}}
        config = make_config(model={"vocab_size": None}, data=data, moe=moe)
        if sources == 1:
            with pytest.raises(InputError, match=r"moe\.router\.locmoe: .* the data has one domain; expected"):
                plan_job(config, 1, 1)
        else:
            assert plan_job(config, 1, 1).domains == 2


def test_placement_of_clusters_that_prepared_data_lack_is_refused(make_config, tiny_data):
    model, data = {"vocab_size": None, "sequence_length": 32}, {"placement": "clustered"}
    with pytest.raises(InputError, match=r"the prepared data has no clusters; .*data\.prepare\.clusters\.count=2"):
        plan_job(make_config(model=model, data={**data, "path": str(tiny_data)}), 2, 1)
    assert plan_job(make_config(model=model, data=data), 2, 1).slot_rules.num_subgroups() == 1
