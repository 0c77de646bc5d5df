"""Times against arithmetic by hand, on hardware with round numbers."""

from dataclasses import replace

import pytest

from locmoe_ops.topology import Topology
from pangu_sigma.planner.exchanges import FORWARD, Exchange, step_exchanges
from pangu_sigma.planner.hardware import Compute, Hardware, HardwareFigure, Island, Link, Peak
from pangu_sigma.planner.launches import step_launches
from pangu_sigma.planner.memory import layer_activations
from pangu_sigma.planner.parameters import count_parameters
from pangu_sigma.planner.predict import compute_time, exchange_time, model_flops, rank_flops, step_flops, step_time


def figure(value):
    return HardwareFigure(value, source="by hand")


def link(bandwidth, latency=0.0):
    return Link(figure(bandwidth), figure(latency))


@pytest.fixture
def hardware():
    """1 TFLOP/s at half efficiency, 10 GB/s of memory; links of 4, 2 and 1 GB/s; nothing else takes time."""
    rates = Compute(Peak(fp32=figure(1.0)), efficiency=figure(0.5), bandwidth_gb_s=figure(10.0), layer_ms=figure(0.0))
    return Hardware("by hand", 4, rates, node=link(2.0), network=link(1.0), call_us=figure(0.0), overlap=figure(1.0))


def of(operation, group, numbers):
    return Exchange("other", "", operation, group, numbers, 4, FORWARD)


MILLION = 1_000_000
CLUSTER = Topology(8, 4, 8)  # 2 nodes x 4 ranks, one expert-parallel group


@pytest.mark.parametrize(
    ("exchange", "topology", "seconds"),
    [
        (
            of("all_to_all", "ep", 8 * MILLION),
            CLUSTER,
            4 * 4e-3 / 1.0,
        ),  # 4 MB to 4 peers on the other node; 3 on the own meanwhile
        (of("all_to_all", "ep_node", 4 * MILLION), CLUSTER, 3 * 4e-3 / 2.0),
        (of("all_gather", "ep_node", MILLION), CLUSTER, 3 * 4e-3 / 2.0),
        (of("reduce_scatter", "ep_node", 4 * MILLION), CLUSTER, 3 * 4e-3 / 2.0),
        (of("all_reduce", "ep_node", 4 * MILLION), CLUSTER, 2 * 3 * 4e-3 / 2.0),  # scattered, then gathered
        (of("all_reduce", "ep_rail", 2 * MILLION), CLUSTER, 2 * 4e-3 / 1.0),
        (of("all_reduce", "tp", 4 * MILLION), Topology(4, 4, 1, 4), 2 * 3 * 4e-3 / 2.0),
    ],
)
def test_bandwidth(hardware, exchange, topology, seconds):
    assert exchange_time(exchange, topology, hardware) == pytest.approx(seconds)


def test_sums_use_fast_islands_first(hardware):
    """4 ranks in two islands of 2: half of the vector inside at 4 GB/s, then a quarter between them at 2 GB/s; and
    back.
    """
    islands = replace(hardware, island=Island(2, link(4.0)))
    topology = Topology(4, 4, 1, 4)
    found = exchange_time(of("all_reduce", "tp", 4 * MILLION), topology, islands)
    assert found == pytest.approx(2 * (8e-3 / 4.0 + 4e-3 / 2.0))


def test_exchanges_use_all_links_at_once(hardware):
    """16 MB in four parts: one to the neighbour on the island, two to the other island, which take longer."""
    islands = replace(hardware, island=Island(2, link(4.0)))
    found = exchange_time(of("all_to_all", "ep", 4 * MILLION), Topology(4, 4, 4), islands)
    assert found == pytest.approx(max(4e-3 / 4.0, 2 * 4e-3 / 2.0))


def test_latency_and_call(hardware):
    """All-reduce of 7 peers, not small: two rounds of 3 latencies each."""
    slow = replace(hardware, call_us=figure(100.0), node=link(1e6, 10.0))
    topology = Topology(8, 8, 1, 8)
    assert exchange_time(of("all_reduce", "tp", MILLION), topology, slow) == pytest.approx(
        100e-6 + 2 * 3 * 10e-6, rel=1e-3
    )


def test_nodes_may_share_one_link(hardware):
    whole, shared = (
        exchange_time(of("all_to_all", "ep", 8 * MILLION), CLUSTER, replace(hardware, network_per_node=each))
        for each in (False, True)
    )
    assert shared == pytest.approx(4 * whole)


def test_computation(make_job, hardware):
    """Products at half of 1 TFLOP/s; what layers keep five times, and 9 numbers a parameter, at 10 GB/s."""
    job = make_job(model={"sparse_layers": 0})
    moved = 5 * sum(layer_activations(job)) + 36 * count_parameters(job).total
    assert compute_time(job, hardware) == pytest.approx(sum(rank_flops(job).values()) / 0.5e12 + moved / 10e9)


def test_flops_without_experts_are_the_models(make_job):
    job = make_job(model={"sparse_layers": 0}, train={"micro_batch_size": 2})
    assert (
        sum(rank_flops(job).values())
        == pytest.approx(model_flops(job))
        == pytest.approx(sum(step_flops(job.config, 96, 24).values()))
    )


def test_experts_compute_on_empty_slots_too(make_job):
    """96 tokens of a rank at capacity factor 1.25: 15 slots for each of 8 experts, 120 in place of 96; tensor
    parallelism halves.
    """
    one, split = make_job(1, 1), make_job(1, 2, parallel={"tensor": 2})
    model = step_flops(one.config, 96, 24)
    assert rank_flops(one)["experts"] == pytest.approx(model["experts"] * 120 / 96)
    assert rank_flops(split)["experts"] == pytest.approx(model["experts"] * 120 / 96 / 2)
    assert rank_flops(split)["routing"] == model["routing"]


def test_shared_experts_compute_once_for_every_token(make_job):
    """Forward and backward, two a multiply-add, of two networks of 24 inner features on 96 tokens; no slot is empty."""
    alone, shared = make_job(), make_job(moe={"shared_experts": 2})
    split = make_job(1, 2, moe={"shared_experts": 2}, parallel={"tensor": 2})
    products = 3 * 2 * 96 * 2 * 16 * 2 * 24
    assert model_flops(shared) - model_flops(alone) == pytest.approx(products)
    assert rank_flops(shared)["shared experts"] == pytest.approx(products)
    assert rank_flops(split)["shared experts"] == pytest.approx(products / 2)
    assert "shared experts" not in rank_flops(alone)


def again(job):
    """Multiply-adds a token of a row, for a width of 16, 24 inner features, 12 positions."""
    return rank_flops(job)["recomputed"] / 2 / 96


def test_products_that_stand_once_more(make_job):
    """Of a dense layer: three maps of heads, scores and mixing, the first map of the feed-forward network. What the
    last maps give nobody reads.
    """
    dense = {"dense_layers": 2, "sparse_layers": 0}
    attention = 3 * 16 * 16 + 2 * 12 * 16
    assert again(make_job(model=dense)) == 0
    assert again(make_job(model=dense, train={"recompute": "attention"})) == 3 * attention
    assert again(make_job(model=dense, train={"recompute": "all"})) == 3 * (attention + 16 * 24)
    assert again(make_job(model=dense, train={"recompute": 1, "micro_batch_size": 4})) == attention + 16 * 24
    split = make_job(1, 2, model=dense, parallel={"tensor": 2}, train={"recompute": "all"})
    assert again(split) == 3 * (attention + 16 * 24) / 2


def test_products_of_experts_that_stand_once_more(make_job):
    """120 slots for 96 tokens; of 48 tokens on each of two ranks 8 x 2 slots of each of 4 experts."""
    attention = 3 * 16 * 16 + 2 * 12 * 16
    assert again(make_job(train={"recompute": "sparse"})) == attention + 16 * 24 * 120 / 96
    two = make_job(1, 2, train={"recompute": "sparse"}, parallel={"expert": 2})
    assert again(two) * 2 == attention + 16 * 24 * 64 / 48
    shared = make_job(train={"recompute": "sparse"}, moe={"shared_experts": 2})
    assert again(shared) == attention + 16 * 24 * (120 / 96 + 2)


def test_a_step_is_the_sum_of_its_parts(make_job, hardware):
    job = make_job(2, 2, parallel={"expert": 4, "overlap_gradients": False})
    time = step_time(job, hardware)
    spent = sum(e.times * exchange_time(e, job.topology, hardware) for e in step_exchanges(job))
    assert time.total == pytest.approx(compute_time(job, hardware) + spent)
    assert time.all_to_all_share == pytest.approx(time.causes["all_to_all"] / time.total)


def test_chunks_hide_all_but_one_part(make_job, hardware):
    """Of the shorter of all-to-all and experts, here the experts."""
    job = make_job(2, 2, parallel={"expert": 4}, moe={"dispatch": {"chunks": 4}})
    time = step_time(job, hardware)
    experts = rank_flops(job)["experts"] / 0.5e12
    assert experts < time.causes["all_to_all"]
    assert time.hidden["all_to_all"] == pytest.approx(experts * 3 / 4)
    assert time.all_to_all_share == pytest.approx((time.causes["all_to_all"] - experts * 3 / 4) / time.total)
    assert set(step_time(job, replace(hardware, overlap=figure(0.0))).hidden.values()) == {0.0}


@pytest.mark.parametrize("bandwidth", [0.001, 1000.0])
def test_the_last_backward_pass_hides_early_gradients(make_job, hardware, bandwidth):
    """Two micro-batches: a third of all computation at most, and no more than there are of weights of maps."""
    job = make_job(2, 2, parallel={"expert": 4}, train={"micro_batch_size": 1})
    links = replace(hardware, node=link(bandwidth), network=link(bandwidth))
    early = [e for e in step_exchanges(job) if e.phase == "last backward"]
    spent = sum(e.times * exchange_time(e, job.topology, links) for e in early)
    third = compute_time(job, links) / 3
    assert (spent > third) == (bandwidth < 1.0)
    assert step_time(job, links).hidden["gradient"] == pytest.approx(min(spent, third))


@pytest.mark.parametrize(("microseconds", "host_bound"), [(1e-3, False), (1e6, True)])
def test_the_longer_of_launches_and_work_is_the_step(make_job, hardware, microseconds, host_bound):
    """A device that works faster than its host launches waits for it."""
    job = make_job(2, 2, parallel={"expert": 4})
    without = step_time(job, hardware)
    assert (without.launch, without.host_bound, without.total) == (0.0, False, without.device)
    rates = replace(hardware.compute, launch_us=figure(microseconds))
    time = step_time(job, replace(hardware, compute=rates))
    assert time.launch == pytest.approx(step_launches(job) * microseconds * 1e-6)
    assert time.device == without.device and time.host_bound == host_bound
    assert time.total == (time.launch if host_bound else without.total)
