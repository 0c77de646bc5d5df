"""Slots from made-up tokens whose cosines are known, in three dimensions, where the exact bound is 1 / (n (1 - delta)).

(The area of a band of the unit sphere is proportional to its height: |cos| >= delta holds for the share 1 - delta.)
"""

from math import ceil

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.capacity.factor import capacity_by_factor
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.config.schema import CapacityConfig
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.sparse import SparseContext
from pangu_sigma.train.capacity import CapacityControl, SlotRule
from pangu_sigma.train.evaluation import RoutedTokens

LENGTH, LAYERS = 12, 2
GATES = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 2], [3, 0, 0]]], np.float32)  # two groups of two experts


def tokens_of(deltas):
    """A layer in which one token of each sequence has this cosine with its gate, and the others smaller ones."""
    x, expert = [], []
    for row, delta in enumerate(deltas):
        group, cosine = row % 2, np.full(LENGTH, 0.1 * delta)
        cosine[row % LENGTH] = delta
        side = np.sqrt(1.0 - cosine**2)
        zero = np.zeros(LENGTH)
        # Group 0: expert 0, along the first axis. Group 1: its second expert, also along the first axis, that is expert
        # 3.
        x.append(np.stack([cosine, zero, side] if group == 0 else [cosine, side, zero], 1) * (1.0 + row))
        expert.append(np.full((LENGTH, 1), 3 * group))
    return RoutedTokens(np.concatenate(x).astype(np.float32), np.concatenate(expert).astype(np.int32), GATES, 2)


class Bench:
    """A control over a list of steps; a step is a list of micro-batches, a micro-batch a delta for each of its rows."""

    def __init__(self, networks, capacity, steps, rows=2):
        config = networks.small_config({"hidden_size": 3, "num_heads": 1}, {"capacity": capacity})
        collectives = create_collectives("local", Topology(1, 1), 0)
        context = SparseContext(config, model_dims(config, rows, networks.VOCABULARY, networks.DOMAINS), collectives)
        self.steps, self.asked, self.set = steps, [], []
        # The second layer asks for less.
        self.control = CapacityControl(
            context,
            LAYERS,
            lambda deltas: [tokens_of(deltas), tokens_of(0.5 * np.array(deltas))],
            lambda slots, factor: self.set.append((slots, factor)),
        )

    def load(self, number):
        self.asked.append(number)
        return self.steps[number]

    def run(self, first, last):
        """Metrics of these steps."""
        found = []
        for step in range(first, last + 1):
            self.control.prepare(step, self.load)
            found.append(self.control.metrics())
        return found


@pytest.fixture
def bench(networks):
    return lambda capacity, steps, rows=2: Bench(networks, capacity, steps, rows)


@pytest.mark.parametrize(
    "delta, options, slots",
    [
        (0.0, {}, 1),  # 1/4 of a token, rounded up
        (0.5, {}, 1),  # 0.5
        (0.88, {}, 3),  # 1 / (4 * 0.12) = 2.08
        (0.99, {}, 25),
        (0.999, {}, 32),  # 250, but there are 32 tokens
        (0.88, {"minimum_factor": 1.25}, 5),  # the even load is 32 / 8
        (0.99, {"maximum_factor": 1.5}, 6),
        (0.88, {"minimum_factor": 0.5, "maximum_factor": 1.5}, 3),
    ],
)
def test_rule_by_hand(delta, options, slots):
    rule = SlotRule(
        CapacityConfig(mode="critical", **options), sequence_length=32, hidden_size=3, per_group=4, top_k=1, in_play=8
    )
    assert rule.slots(delta) == slots


@pytest.mark.parametrize(
    "options, buckets",
    [
        ({"mode": "critical"}, tuple(range(1, 33))),
        ({"mode": "critical", "minimum_factor": 1.0, "maximum_factor": 1.5}, (4, 5, 6)),
        ({"mode": "adaptive", "buckets": 6}, (1, 2, 4, 8, 16, 32)),
        ({"mode": "adaptive", "buckets": 3, "minimum_factor": 0.5, "maximum_factor": 2.0}, (2, 4, 8)),
    ],
)
def test_slots_to_choose_from(options, buckets):
    assert SlotRule(CapacityConfig(**options), 32, 3, 4, 1, 8).buckets() == buckets


def test_by_factor_nothing_is_measured(bench):
    idle = bench({"factor": 2.0}, [])
    assert idle.run(1, 3) == [{}, {}, {}] and idle.control.state() == [] and idle.asked == idle.set == []


def test_critical_capacity_comes_from_the_first_batches_and_stays(bench):
    steps = [[[0.9, 0.8], [0.9, 0.9]], [[0.95, 0.85], [0.8, 0.7]], [[0.99, 0.99]] * 2, [[0.1, 0.1]] * 2]
    critical = bench({"mode": "critical", "estimate_steps": 2}, steps)
    found = critical.run(1, 4)
    delta = (0.9 + 0.8 + 0.9 + 0.9 + 0.95 + 0.85 + 0.8 + 0.7) / 8
    slots = 2 * ceil(1.0 / (2 * (1.0 - delta)))  # two rows of a micro-batch, two experts of a group
    assert slots == 8
    # 24 tokens of a micro-batch over four experts: the even load is 6.
    assert found == [{"moe/capacity_slots": slots, "moe/capacity_factor": slots / 6, "moe/graphs": 1}] * 4
    assert critical.asked == [0, 1] and critical.set == [(slots, slots / 6)]
    assert capacity_by_factor(24, 1, 4, critical.set[0][1]) == slots


ADAPTIVE = {"mode": "adaptive", "interval": 2, "buckets": 4, "hysteresis": 0.0}  # 1, 2, 5 or 12 slots a sequence
# Bounds by step: 4.2, -, 1.7, -, 0.6, -, 25, -, 3.3: buckets 5, 2, 1, 12 and 5 again.
SCRIPT = [[[delta] * 2] for delta in (0.88, 0.1, 0.7, 0.1, 0.2, 0.1, 0.98, 0.1, 0.85)]
SLOTS, GRAPHS = [10, 10, 4, 4, 2, 2, 24, 24, 10], [1, 1, 2, 2, 3, 3, 4, 4, 4]


def test_adaptive_capacity_follows_the_bound(bench):
    adaptive = bench(ADAPTIVE, SCRIPT)
    found = adaptive.run(1, 9)
    assert [metrics["moe/capacity_slots"] for metrics in found] == SLOTS
    assert [metrics["moe/graphs"] for metrics in found] == GRAPHS
    assert adaptive.asked == [0, 2, 4, 6, 8]
    assert [slots for slots, _ in adaptive.set] == [10, 4, 2, 24, 10]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_resumed_run_goes_on_identically(bench, cut):
    whole, first, second = (bench(ADAPTIVE, SCRIPT) for _ in range(3))
    first.run(1, cut)
    hand_over(first, second)
    assert second.run(cut + 1, 9) == whole.run(1, 9)[cut:]


def test_a_resumed_run_may_have_other_micro_batches(bench):
    first, second = (
        bench(ADAPTIVE, SCRIPT),
        bench(ADAPTIVE, [[[delta] * 4 for ((delta, _),) in [step]] for step in SCRIPT], rows=4),
    )
    first.run(1, 3)
    hand_over(first, second)
    assert [metrics["moe/capacity_slots"] for metrics in second.run(4, 9)] == [2 * slots for slots in SLOTS[3:]]


def test_critical_capacity_survives_a_resume(bench):
    first, second = (bench({"mode": "critical"}, SCRIPT) for _ in range(2))
    kept = first.run(1, 2)[-1]
    hand_over(first, second)
    assert second.run(3, 9) == [kept] * 7 and second.asked == []


def test_a_resumed_run_may_have_a_lower_limit(bench):
    first, second = bench(ADAPTIVE, SCRIPT), bench({**ADAPTIVE, "maximum_factor": 1.0}, SCRIPT)
    first.run(1, 2)
    hand_over(first, second)
    assert second.run(3, 3)[0]["moe/capacity_slots"] == 4  # 1, 2 or 3 a sequence now: the bound of 1.7 asks for 2


def hand_over(first, second):
    """What a checkpoint does."""
    for mine, other in zip(first.control.state(), second.control.state()):
        other.set_data(Tensor(mine.asnumpy()))
