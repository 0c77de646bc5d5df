"""Bytes of each collective against the algorithms themselves, played by recorders; bytes of whole steps against hand
arithmetic.
"""

from dataclasses import replace

import numpy as np
import pytest

from locmoe_ops.collectives.tcp import algorithms
from locmoe_ops.topology import Topology
from pangu_sigma.planner.exchanges import FORWARD, LAST_BACKWARD, Exchange, step_exchanges
from pangu_sigma.planner.traffic import by_cause, sent

TOPOLOGIES = [
    Topology(8, 4, 4, 2),
    Topology(8, 2, 2, 2),
    Topology(6, 3, 3),
    Topology(12, 4, 2),
    Topology(4, 1, 4),
    Topology(4, 4, 4),
]
OPERATIONS = ["all_to_all", "all_gather", "reduce_scatter", "all_reduce"]
SIZES = [1, 7, 700, 5001]  # numbers; 2048 of them are what a small all-reduce may have


class Recorder:
    """One rank's end of a collective that sends nothing: notes bytes by receiver."""

    def __init__(self, index, size):
        self.index, self.size, self.bytes = index, size, np.zeros(size, np.int64)

    def others(self):
        return [(self.index + step) % self.size for step in range(1, self.size)]

    def send(self, peer, array):
        self.bytes[peer] += array.nbytes

    def receive(self, peer, array):
        array[...] = 0


def played(operation, topology, kind, array):
    """Bytes inside and between nodes, by running the algorithm on every rank of every group."""
    totals = [0, 0]
    for group in topology.groups(kind):
        for index, rank in enumerate(group):
            recorder = Recorder(index, len(group))
            for _ in getattr(algorithms, operation)(recorder, array):
                pass
            for peer, count in zip(group, recorder.bytes):
                totals[topology.node_of(peer) != topology.node_of(rank)] += int(count)
    return tuple(totals)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_collective_sends_what_the_algorithm_sends(topology, operation):
    for kind in ("world", "tp", "ep", "dp", "edp", "ep_node", "ep_rail", "dp_rail"):
        size = len(topology.groups(kind)[0])
        if size == 1:
            continue
        for numbers in SIZES:
            rows = numbers * size if operation in ("all_to_all", "reduce_scatter") else numbers
            array = np.zeros((size, numbers) if operation == "all_to_all" else rows, np.float32)
            exchange = Exchange("other", "", operation, kind, rows, 4, FORWARD)
            assert sent(exchange, topology) == played(operation, topology, kind, array), (kind, numbers)


def test_flat_dispatch_by_hand(make_job):
    """2 nodes x 2 ranks, 8 experts, 24 tokens a rank: 4 slots an expert, so 2 x 4 rows of 16 float32 to each other
    rank, of which one is on the node and two are not; there and back, forward and backward.
    """
    job = make_job(2, 2, parallel={"expert": 4})
    link = 2 * 4 * 16 * 4
    assert by_cause(step_exchanges(job), job.topology)["all_to_all"] == (4 * 4 * 1 * link, 4 * 4 * 2 * link)


def test_a_tensor_parallel_group_sums_shared_experts(make_job):
    """As a dense network: once each way in every layer, for all of them together. Nothing else is exchanged."""
    sections = {"model": {"sparse_query_layer": True}, "parallel": {"expert": 2, "tensor": 2}}
    plain, shared = (step_exchanges(make_job(1, 4, **sections, moe={"shared_experts": count})) for count in (0, 3))
    names = ("feed-forward, sum", "feed-forward, gradient")
    assert [one.times for one in plain if one.name in names] == [1, 1]  # of the dense block
    assert [one.times for one in shared if one.name in names] == [3, 3]  # and of two sparse layers
    rest = [[one for one in found if one.name not in names and one.cause != "gradient"] for found in (plain, shared)]
    assert rest[0] == rest[1]


@pytest.mark.parametrize(("hidden", "most"), [(32, 0.6), (512, 0.51)])
@pytest.mark.parametrize("plain", ["flat", "hierarchical"])
def test_one_copy_a_node_saves_half_of_the_bytes_between_nodes(make_job, plain, hidden, most):
    """Four choices among 8 experts on 2 x 2 nodes at capacity factor 1: two of a token's assignments leave, with one
    copy (1 - 1/70 of the tokens send one). Weights and maps weigh less, the longer the rows.
    """
    planned = {}
    for kind in (plain, "node_dedup"):
        moe = {"num_groups": 1, "dispatch": {"type": kind}, "router": {"top_k": 4}, "capacity": {"factor": 1.0}}
        job = make_job(2, 2, moe=moe, model={"hidden_size": hidden}, parallel={"expert": 4})
        planned[kind] = by_cause(step_exchanges(job), job.topology)["all_to_all"]
    tokens, ranks = 24, 4  # all of a rank's 24 tokens have room
    rows = 4 * 12 * 4 * hidden  # a rank's slots of the other node's 4 experts, 12 each
    assert planned[plain].inter_node == ranks * 4 * rows
    copies = tokens * 4 * (4 * hidden + 2 * 4) + 4 * 12 * 4
    assert planned["node_dedup"].inter_node == ranks * copies <= most * planned[plain].inter_node


# Shapes of groups and exchanges: flat, in chunks, hierarchical, group-wise, ragged; experts whole and split.
LAYOUTS = {
    "flat": {"parallel": {"expert": 4}},
    "chunks": {"parallel": {"expert": 4}, "moe": {"dispatch": {"chunks": 2}}},
    "hierarchical": {"parallel": {"expert": 4}, "moe": {"dispatch": {"type": "hierarchical"}}},
    "ragged": {"parallel": {"expert": 4}, "moe": {"dispatch": {"type": "ragged"}}},
    "one copy a node": {"parallel": {"expert": 4}, "moe": {"dispatch": {"type": "node_dedup"}, "router": {"top_k": 2}}},
    "tensor": {"parallel": {"expert": 2, "tensor": 2}},
    "group-wise": {"parallel": {"expert": 2, "tensor": 2}, "moe": {"dispatch": {"group_wise": True}}},
    "two tiers, group-wise": {
        "parallel": {"expert": 2, "tensor": 2},
        "moe": {"dispatch": {"type": "hierarchical", "group_wise": True}},
    },
    "gathered": {"parallel": {"expert": 4, "all_to_all": "gathered"}},
    "dense": {"parallel": {"tensor": 2}, "model": {"sparse_layers": 0}},
}
# Of what layers exchange, what is not of the matmuls' type
APART = ("router statistics", "cross-entropy", "counts", "slots of copies")


@pytest.mark.parametrize("name", LAYOUTS)
def test_half_precision_halves_all_that_layers_exchange(make_job, name):
    """The same calls, and of each half the bytes, but for those that are listed; float32 in gradients and update."""
    single, half = (
        step_exchanges(make_job(2, 2, **LAYOUTS[name], runtime={"precision": precision}))
        for precision in ("fp32", "fp16")
    )
    assert len(single) == len(half) > 0
    for one, other in zip(single, half):
        apart = one.cause == "gradient" or one.name.startswith(APART)
        assert (one.item, other.item) == (4, 4 if apart else 2), one.name
        assert replace(one, item=0) == replace(other, item=0)


REDUCED = {"precision": "fp16"}


def by_name(job, cause="gradient"):
    return [(e.operation, e.group, e.elements, e.item) for e in step_exchanges(job) if e.cause == cause]


def test_narrow_gradients_by_hand(make_job):
    """Without layers with experts, 2 nodes x 4 ranks, gradients after the backward pass: one message of n numbers; the
    parts of 4 neighbours, then of 2 nodes; sums back the other way; statistics by themselves, in float32.
    """
    sections = {"model": {"sparse_layers": 0, "dense_layers": 0}, "runtime": REDUCED}
    parallel = {"overlap_gradients": False}
    whole = make_job(2, 4, **sections, parallel=parallel)
    half = make_job(2, 4, **sections, parallel={**parallel, "reduce_precision": "fp16"})
    statistics = 4 + 3
    numbers = sum((24 * 16, 12 * 16, 2 * 16, 12 * 16, 2 * 16, 4 * 16 * 16, 3 * 16, 2 * 16, 2 * 24 * 16 + 24 + 16))
    share = -(-numbers // 8)
    assert by_name(half)[:4] == [
        ("all_to_all", "dp_node", 8 * share, 2),
        ("all_to_all", "dp_rail", 2 * share, 2),
        ("all_gather", "dp_rail", share, 2),
        ("all_gather", "dp_node", 2 * share, 2),
    ]
    assert [(op, item) for op, _, _, item in by_name(half)[4:7]] == [
        ("reduce_scatter", 4),
        ("all_reduce", 4),
        ("all_gather", 4),
    ]
    assert by_name(half)[5][2] == -(-statistics // 4)
    before, after = (by_cause(step_exchanges(job), job.topology)["gradient"] for job in (whole, half))
    assert after.inter_node / before.inter_node == pytest.approx(0.5, abs=0.02)  # statistics and padding


def test_narrow_gradients_of_shared_state_are_not_gathered(make_job):
    """A rank adds its own stretch in float32 and updates it; the weights travel as they are."""
    job = make_job(
        2,
        2,
        parallel={"expert": 2, "reduce_precision": "fp16", "overlap_gradients": False},
        optimizer={"zero": "data_parallel"},
        runtime=REDUCED,
    )
    found = by_name(job)
    assert {(op, item) for op, _, _, item in found} == {
        ("all_to_all", 2),
        ("all_gather", 4),
        ("reduce_scatter", 4),
        ("all_reduce", 4),
    }
    small = [elements for op, _, elements, item in found if item == 4 and op != "all_gather"]
    assert max(small) < 200  # statistics and the norm


@pytest.mark.parametrize(
    ("device", "operations"),
    [
        ("cpu", ["reduce_scatter", "all_reduce", "all_gather"]),
        ("ascend", ["all_to_all", "all_to_all", "all_gather", "all_gather"]),
    ],
)
def test_early_narrow_gradients(make_job, device, operations):
    """The mesh adds float16 in float32 itself; hccl's are made of all-to-alls."""
    job = make_job(
        2, 2, model={"sparse_layers": 0}, parallel={"reduce_precision": "fp16"}, runtime={**REDUCED, "device": device}
    )
    early = [e for e in step_exchanges(job) if e.phase == LAST_BACKWARD]
    assert [e.operation for e in early] == operations
    assert {e.item for e in early} == {2}


@pytest.mark.parametrize(("megabytes", "messages"), [(None, 1), (0.01, 2), (4096.0, 1)])
def test_early_gradients_go_in_buckets_on_hccl_too(make_job, megabytes, messages):
    """3 x 4 maps of 16 x 16 and 2 x 2 of 24 x 16: 4,608 numbers in order, of which 2,621 are 0.01 MB."""
    parallel = {"bucket_mb": megabytes}
    job = make_job(1, 2, parallel=parallel, runtime={"device": "ascend"}, model={"sparse_layers": 1})
    early = [e.elements for e in step_exchanges(job) if e.phase == LAST_BACKWARD]
    assert (len(early), sum(early)) == (messages, 3 * 4 * 256 + 2 * 2 * 384)


def test_gradients_cross_between_nodes_once(make_job):
    """Without experts all of them are summed over all ranks: within each node of 4 first, then a quarter between 2
    nodes.
    """
    job = make_job(2, 4, model={"sparse_layers": 0, "dense_layers": 0})
    numbers = (
        sum((24 * 16, 12 * 16, 2 * 16, 12 * 16, 2 * 16, 4 * 16 * 16, 3 * 16, 2 * 16, 2 * 24 * 16 + 24 + 16)) + 4 + 3
    )
    share = -(-numbers // 4)
    found = by_cause(step_exchanges(job), job.topology)["gradient"]
    assert found == (2 * 4 * 3 * 2 * share * 4, 4 * 2 * 2 * -(-share // 2) * 4)


def test_nothing_travels_on_one_rank(make_job):
    assert not step_exchanges(make_job())


def test_micro_batches_repeat_forward_and_backward_but_not_the_update(make_job):
    whole = make_job(2, 2, parallel={"expert": 4})
    halves = make_job(2, 2, parallel={"expert": 4}, train={"micro_batch_size": 1})
    first, second = (by_cause(step_exchanges(job), job.topology) for job in (whole, halves))
    assert first["gradient"] == second["gradient"]
    assert second["other"].inter_node == 2 * first["other"].inter_node > 0


@pytest.mark.parametrize(("statistics", "sets"), [("rank", 4), ("node", 2), ("global", 1)])
def test_a_divergence_loss_sums_the_experts_probabilities_of_each_domain(make_job, statistics, sets):
    """3 domains x 8 experts of each set of tokens, once forward and once backward."""
    router = {"statistics": statistics, "locmoe": {"divergence_loss_weight": 0.1}}
    data = {"prepare": {"sources": {name: "text" for name in ("a", "b", "c")}}}
    job = make_job(2, 2, parallel={"expert": 4}, moe={"num_groups": 1, "router": router}, data=data)
    found = [one for one in step_exchanges(job) if one.name == "router statistics of domains"]
    sparse_layers = job.config.model.sparse_layers
    assert [one.elements for one in found] == [sets * 3 * 8] * 2 * sparse_layers
