"""What each rank of the job that trained had: slots by hand, and rows as the job's own loaders share them out."""

from contextlib import closing

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities, uniform_slots
from locmoe_ops.dispatch.repick import slot_assignment
from locmoe_ops.reference.slots import keep_within_capacity, share_copies
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.evaluation.ranks import (
    LimitedCopies,
    TrainedSlots,
    trained_slots,
    training_batches,
    validation_batches,
)
from pangu_sigma.model.dims import model_dims


def config_of(data="absent", **moe):
    return config_from_dict(
        {
            "model": {"hidden_size": 16, "num_heads": 2, "sequence_length": 32},
            "data": {"path": str(data)},
            "moe": {
                "num_experts": 8,
                "num_groups": 2,
                "router": {"type": "switch"},
                "capacity": {"evaluation_factor": 1.0},
                **moe,
            },
            "train": {"global_batch_size": 8, "micro_batch_size": 2, "eval_rows": 10},
        }
    )


FOUR = Topology(4, 2, 4)  # two nodes of two, each rank two of the eight experts


@pytest.mark.parametrize(
    ("moe", "topology", "expected"),
    [
        # 64 tokens of a rank over 8 experts, all of them in play with shuffled data: 8 slots, whoever asks
        ({}, FOUR, [[8] * 8] * 4),
        ({"capacity": {"evaluation_factor": 1.5}}, FOUR, [[12] * 8] * 4),
        ({"dispatch": {"chunks": 3}}, FOUR, [[9] * 8] * 4),  # rounded up to a multiple of the chunks
        # three quarters of 64 over the own node's four experts: 12 slots; a quarter over the other node's four: 4
        (
            {"dispatch": {"type": "hierarchical"}, "capacity": {"evaluation_factor": 1.0, "local_share": 0.75}},
            FOUR,
            [[12, 4] if rank < 2 else [4, 12] for rank in range(4)],
        ),
        ({"dispatch": {"type": "hierarchical"}}, Topology(2, 2, 2), [[8] * 8] * 2),  # one node is one tier
        # 9, rounded up to four equal shares
        ({"dispatch": {"group_wise": True}, "capacity": {"evaluation_factor": 1.1}}, Topology(4, 4, 1, 4), [[12] * 8]),
    ],
)
def test_slots_of_each_rank(moe, topology, expected):
    config = config_of(**moe)
    found = trained_slots(config, model_dims(config, 2, 320, 2), topology)
    if len(expected[0]) == 2:  # experts on the first node, and on the second
        first = np.array(
            [expert % 4 < 2 for expert in range(8)]
        )  # interleaved: of each group of four, two on each node
        expected = [np.where(first, *pair).tolist() for pair in expected]
    assert found.capacity.tolist() == expected and found.copies == 0


def test_copies_of_each_rank():
    """Four choices of a group of four are all of its experts, two on each node: all 64 tokens leave, and one of four
    has a copy's slot. Experts are dealt out to ranks in turn, group by group.
    """
    capacity = {"evaluation_factor": 1.0, "node_share": 0.25}
    config = config_of(dispatch={"type": "node_dedup"}, capacity=capacity, router={"type": "switch", "top_k": 4})
    found = trained_slots(config, model_dims(config, 2, 320, 2), FOUR)
    assert (found.copies, found.nodes) == (16, 2)
    own, other = [[2, 2, 1, 1], [0, 0, 2, 2]], 2  # of a rank of the first node, and of the second, in each group
    assert found.node.tolist() == [own[rank // other] * 2 for rank in range(4)]


@pytest.mark.parametrize("priority", ["position", "weight"])
def test_limited_copies_match_a_loop(priority):
    """Six experts of three nodes, of which the second is the rank's own; a flat buffer of one process."""
    experts, tokens, top_k, capacity, copies, own = 6, 20, 3, 7, 5, 1
    node = np.array([0, 1, 2, 0, 1, 2])
    options = DispatchOptions(drop_priority=priority)
    setup = DispatchSetup(
        Topology(1, 1), ExpertPlacement(experts, 1, 1), tokens, top_k, FixedCapacities(capacity), options
    )
    slots = slot_assignment(setup, uniform_slots(np.arange(experts), capacity))
    limit = TrainedSlots(np.full((1, experts), capacity), copies, np.where(node == own, 3, node)[None], 3)
    cell = LimitedCopies(slots, setup, limit)
    cell.node = Tensor(np.append(limit.node[0], 3).astype(np.int32))
    rng = np.random.default_rng(0)
    expert = rng.permuted(np.tile(np.arange(experts), (tokens, 1)), axis=1)[:, :top_k].astype(np.int32)
    expert[rng.uniform(size=expert.shape) < 0.1] = experts  # no assignment
    weight = rng.choice(np.float32([0, 0.25, 0.5, 0.75]), expert.shape)  # many ties
    kept = keep_within_capacity(expert, weight, [capacity] * experts, priority)
    carried = share_copies(expert, weight, kept, node, own, copies, priority)
    found = cell(Tensor(expert), Tensor(weight))["keep_mask"].asnumpy()
    assert np.array_equal(found.reshape(top_k, tokens).T > 0.5, carried) and 0 < carried.sum() < kept.sum()


@pytest.mark.parametrize(
    ("ranks", "layout"), [(1, Topology(1, 1)), (2, Topology(2, 1, 2)), (4, Topology(4, 2, 4)), (2, Topology(4, 2, 4))]
)
def test_rows_are_those_of_the_ranks(tiny_data, ranks, layout):
    """Of ten rows in micro-batches of two; a rank's last one may be padded, and one of padding alone is left out."""
    config, data = config_of(tiny_data), PreparedData.open(str(tiny_data))
    found, rows = validation_batches(config, data, layout, ranks), []
    for rank in range(ranks):
        with closing(create_loader(config, data, layout, rank, ranks)) as loader:
            expected = loader.validation()
        own = [batch for number, batch in found if number == rank]
        assert all(batch.loss_mask.any() for batch in own) and len(own) <= len(expected)
        for batch, other in zip(own, expected):
            assert all(np.array_equal(a, b) for a, b in zip(batch, other))
        rows += [batch.ids[row].tobytes() for batch in own for row in np.flatnonzero(batch.loss_mask.any(1))]
    assert len(set(rows)) == len(rows) == 10


@pytest.mark.parametrize("rows", [3, 8, 9, 10**6])
def test_training_rows_are_those_of_whole_steps(tiny_data, rows):
    """In the order of steps; of no more steps than an epoch has, whatever is asked for."""
    config, data, layout = config_of(tiny_data), PreparedData.open(str(tiny_data)), Topology(2, 1, 2)
    available = sum(data.rows("train", domain) for domain in range(2))
    steps = -(-min(rows, available) // 8)
    found = training_batches(config, data, layout, 2, None, rows)
    assert len(found) == steps * 4 and [rank for rank, _ in found] == [0, 0, 1, 1] * steps  # 8 rows in batches of 2
    for rank in range(2):
        with closing(create_loader(config, data, layout, rank, 2)) as loader:
            expected = [batch for step in range(steps) for batch in loader.step(step)]
        for (_, batch), other in zip([one for one in found if one.rank == rank], expected):
            assert all(np.array_equal(a, b) for a, b in zip(batch, other))
