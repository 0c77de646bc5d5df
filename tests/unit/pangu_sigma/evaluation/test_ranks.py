"""What each rank of the job that trained had: slots by hand, and rows as the job's own loaders share them out."""

from contextlib import closing

import numpy as np
import pytest

from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.evaluation.ranks import trained_capacities, training_batches, validation_batches
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
    found = trained_capacities(config, model_dims(config, 2, 320, 2), topology)
    if len(expected[0]) == 2:  # experts on the first node, and on the second
        first = np.array(
            [expert % 4 < 2 for expert in range(8)]
        )  # interleaved: of each group of four, two on each node
        expected = [np.where(first, *pair).tolist() for pair in expected]
    assert found.tolist() == expected


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
