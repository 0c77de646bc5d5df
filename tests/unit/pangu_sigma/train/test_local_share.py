"""The far tier's bucket from made-up routes: two nodes of one rank, which one process plays."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.sparse import SparseContext
from pangu_sigma.train.evaluation import RoutedTokens
from pangu_sigma.train.local_share import LocalShareControl

LENGTH = 20  # tokens a row
LAYOUT = {"world_size": 2, "ranks_per_node": 1, "expert": 2}
AT_HOME = {0: 0, 1: 1}  # an expert of group 0 on each node: group 0 has experts 0 and 1


class Bench:
    """A control over a list of steps. A step is a list of micro-batches, a micro-batch a list of rows, a row the number
    of its tokens that leave, of each layer. Rows are at home on node 0 and 1 in turn.
    """

    def __init__(self, networks, steps, layout=LAYOUT, **options):
        config = networks.small_config(
            {},
            {"logical_topology": layout, "dispatch": {"type": "hierarchical"}, "capacity": {"measured_share": options}},
        )
        collectives = create_collectives("local", Topology(1, 1), 0)
        context = SparseContext(config, model_dims(config, 2, networks.VOCABULARY, networks.DOMAINS), collectives)
        self.steps, self.asked, self.set = steps, [], []
        self.control = LocalShareControl(context, 2, self.routed, self.set.append)

    def load(self, number):
        self.asked.append(number)
        return [
            SimpleNamespace(home=np.arange(len(rows), dtype=np.int32) % 2, leaving=rows) for rows in self.steps[number]
        ]

    def routed(self, batch):
        layers = []
        for layer in range(2):
            expert = np.concatenate(
                [
                    np.where(np.arange(LENGTH) < leaving[layer], AT_HOME[1 - home], AT_HOME[home])
                    for home, leaving in zip(batch.home, batch.leaving)
                ]
            )
            layers.append(
                RoutedTokens(np.zeros((len(expert), 1), np.float32), expert[:, None].astype(np.int32), None, 2)
            )
        return layers

    def run(self, first, last):
        found = []
        for step in range(first, last + 1):
            self.control.prepare(step, self.load)
            found.append(self.control.metrics())
        return found


def even(leaving):
    """A step of one micro-batch of two rows, one a node, that `leaving` tokens of each leave in both layers."""
    return [[(leaving, leaving)] * 2]


# Buckets of two nodes: room for 1/2, 1/4, 1/8 and none; of 20 tokens 10, 5, 2.5 and 0. Hysteresis 0.2 leaves 4 and 2 of
# 5 and 2.5 tokens usable on the way down.
SCRIPT = [10, 5, 4, 3, 2, 1, 0, 1, 4, 8, 20]
SHARES = [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 0.875, 0.75, 0.5, 0.5]
MEASURED = [0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 0.95, 0.8, 0.6, 0.5]  # not below an even spread's


def test_the_far_tier_follows_what_leaves(networks):
    bench = Bench(networks, [even(leaving) for leaving in SCRIPT], interval=1, hysteresis=0.2)
    found = bench.run(1, len(SCRIPT))
    assert [metrics["moe/local_share"] for metrics in found] == SHARES
    assert [metrics["moe/measured_local_share"] for metrics in found] == pytest.approx(MEASURED, abs=1e-6)
    assert bench.set == [1, 2, 3, 2, 1, 0]  # only changes are told


@pytest.mark.parametrize(
    "step, share",
    [
        ([[(0, 0), (0, 0)]], 1.0),
        ([[(0, 0), (2, 0)]], 0.875),  # a node's layer, 2 of 20
        ([[(2, 0), (0, 2)]], 0.875),  # both nodes, in different layers: not 4 of 40
        ([[(0, 0), (4, 0)], [(0, 0), (0, 0)]], 0.875),  # 4 of 40: micro-batches add up
        ([[(0, 0), (8, 0)]], 0.5),  # 8 of 20 of one node need room for an even spread, whatever the other does
    ],
)
def test_the_layer_and_node_with_most_that_leaves_decide(networks, step, share):
    assert Bench(networks, [step], hysteresis=0.0).run(1, 1)[0]["moe/local_share"] == share


def test_it_is_measured_every_interval_steps_and_kept_between(networks):
    bench = Bench(networks, [even(leaving) for leaving in (0, 10, 10, 5, 0, 0, 10)], interval=3, hysteresis=0.0)
    assert [metrics["moe/local_share"] for metrics in bench.run(1, 7)] == [1.0, 1.0, 1.0, 0.75, 0.75, 0.75, 0.5]
    assert bench.asked == [0, 3, 6]


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_run_that_is_resumed_decides_as_one_that_was_not(networks, cut):
    steps, options = [even(leaving) for leaving in SCRIPT], {"interval": 2, "hysteresis": 0.2}
    whole = Bench(networks, steps, **options).run(1, 11)
    first = Bench(networks, steps, **options)
    found = first.run(1, cut)
    second = Bench(networks, steps, **options)
    for parameter, saved in zip(second.control.state(), first.control.state()):
        parameter.set_data(Tensor(saved.asnumpy()))
    assert found + second.run(cut + 1, 11) == whole


def test_a_run_resumes_with_other_buckets(networks):
    """The next larger bucket that there is; measured again when it is due."""
    first = Bench(networks, [even(4)], interval=5, buckets=4)
    assert first.run(1, 1)[0]["moe/local_share"] == 0.75
    second = Bench(networks, [[]] * 5 + [even(0)], interval=5, buckets=2)
    second.control.state()[0].set_data(Tensor(first.control.state()[0].asnumpy()))
    assert [metrics["moe/local_share"] for metrics in second.run(2, 6)] == [0.5, 0.5, 0.5, 0.5, 1.0]


def test_where_nothing_can_leave_nothing_is_measured(networks):
    idle = Bench(networks, [], layout=None)
    assert idle.run(1, 3) == [{}, {}, {}] and idle.asked == idle.set == []


def test_without_the_section_it_does_nothing(networks):
    config = networks.small_config({}, {"logical_topology": LAYOUT})
    collectives = create_collectives("local", Topology(1, 1), 0)
    context = SparseContext(config, model_dims(config, 2, networks.VOCABULARY, networks.DOMAINS), collectives)
    control = LocalShareControl(context, 2, lambda batch: [], lambda bucket: None)
    control.prepare(1, lambda number: [])
    assert control.metrics() == {} and control.state() == []
