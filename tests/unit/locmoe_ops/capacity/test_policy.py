import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locmoe_ops.capacity.policy import AdaptiveCapacity, capacity_buckets, choose_bucket, slots_from_bound
from locmoe_ops.errors import InputError

BUCKETS = (10, 20, 40, 80)


@pytest.mark.parametrize(
    "bound, tokens, rows, top_k, experts, options, slots",
    [
        (1.9648, 4096, 4, 1, 16, {}, 8),  # four sequences, two whole tokens each
        (1.9648, 1024, 1, 1, 16, {}, 2),
        (2.0, 1024, 8, 1, 16, {}, 16),
        (2.0, 1024, 8, 2, 16, {}, 16),  # the bound counts what reaches one expert
        (0.1, 1024, 8, 1, 16, {}, 8),  # at least one token of each sequence
        (0.1, 6, 8, 1, 16, {}, 6),
        (600.0, 1024, 8, 1, 16, {}, 1024),
        (math.inf, 1024, 8, 1, 16, {}, 1024),
        (2.0, 1024, 8, 1, 16, {"minimum_factor": 0.5}, 32),  # half of 64
        (2.0, 1024, 8, 2, 16, {"minimum_factor": 0.5}, 64),
        (6.0, 1024, 8, 1, 16, {"minimum_factor": 0.5}, 48),
        (600.0, 1024, 8, 1, 16, {"maximum_factor": 1.25}, 80),
        (math.inf, 1000, 8, 1, 16, {"maximum_factor": 1.1}, 69),  # 68.75 rounded up
        (6.0, 1024, 8, 1, 16, {"minimum_factor": 0.5, "maximum_factor": 1.25}, 48),
        (2.0, 1024, 8, 1, 16, {"minimum_factor": 1.0, "maximum_factor": 1.0}, 64),
        (2.0, 8, 1, 1, 1, {"minimum_factor": 4.0}, 8),
    ],
)
def test_slots_by_hand(bound, tokens, rows, top_k, experts, options, slots):
    assert slots_from_bound(bound, tokens, rows, top_k, experts, **options) == slots


@given(st.floats(1e-6, 1e6), st.integers(1, 10_000), st.integers(1, 64), st.integers(1, 4), st.integers(1, 640))
def test_slots_hold_the_bound_of_every_sequence_or_every_token(bound, tokens, rows, top_k, experts):
    slots = slots_from_bound(bound, tokens, rows, top_k, experts)
    assert 1 <= slots <= tokens
    assert slots == tokens or rows * bound <= slots < rows * (bound + 1.0)


@pytest.mark.parametrize(
    "arguments, options, fragment",
    [
        ((0.0, 10, 1, 1, 4), {}, "bound_tokens is 0.0, expected a number above 0"),
        ((math.nan, 10, 1, 1, 4), {}, "bound_tokens is nan"),
        ((1.0, 0, 1, 1, 4), {}, "tokens is 0"),
        ((1.0, 10, 0, 1, 4), {}, "rows is 0"),
        ((1.0, 10, 1, 0, 4), {}, "top_k is 0"),
        ((1.0, 10, 1, 1, 0), {}, "experts_in_play is 0"),
        ((1.0, 10, 1, 1, 4), {"minimum_factor": -1.0}, "factor is -1.0"),
        ((1.0, 10, 1, 1, 4), {"maximum_factor": 0.0, "minimum_factor": 0.0}, "factor is 0.0"),
        (
            (1.0, 10, 1, 1, 4),
            {"maximum_factor": 1.0, "minimum_factor": 2.0},
            "minimum_factor is 2.0, expected at most maximum_factor",
        ),
    ],
)
def test_bad_bounds_are_named(arguments, options, fragment):
    with pytest.raises(InputError) as caught:
        slots_from_bound(*arguments, **options)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "tokens, smallest, count, buckets",
    [
        (80, 10, 4, (10, 20, 40, 80)),
        (512, 8, 4, (8, 32, 128, 512)),
        (1000, 10, 3, (10, 100, 1000)),
        (100, 10, 4, (10, 22, 46, 100)),  # 21.54 and 46.42
        (4, 1, 8, (1, 2, 3, 4)),  # not more counts than there are
        (7, 7, 5, (7,)),
        (64, 4, 1, (64,)),
    ],
)
def test_buckets_by_hand(tokens, smallest, count, buckets):
    assert capacity_buckets(tokens, smallest, count) == buckets


@given(st.integers(1, 100_000), st.data())
def test_buckets_hold_every_slot_count(tokens, data):
    smallest, count = data.draw(st.integers(1, tokens)), data.draw(st.integers(2, 12))
    buckets = capacity_buckets(tokens, smallest, count)
    assert 1 <= len(buckets) <= count
    assert buckets[0] == smallest and buckets[-1] == tokens
    assert all(left < right for left, right in zip(buckets, buckets[1:]))
    slots = data.draw(st.integers(1, tokens))
    assert choose_bucket(slots, buckets) == min(bucket for bucket in buckets if bucket >= slots)


@pytest.mark.parametrize(
    "call, fragment",
    [
        (lambda: capacity_buckets(8, 9, 2), "smallest is 9, expected at most the 8 slots"),
        (lambda: capacity_buckets(0, 1, 2), "tokens is 0"),
        (lambda: capacity_buckets(8, 0, 2), "smallest is 0"),
        (lambda: capacity_buckets(8, 1, 0), "count is 0"),
        (lambda: choose_bucket(81, BUCKETS), "slots is 81, expected at most the largest bucket of [10, 20, 40, 80]"),
        (lambda: choose_bucket(0, BUCKETS), "slots is 0"),
        (lambda: AdaptiveCapacity(0, BUCKETS), "interval is 0"),
        (lambda: AdaptiveCapacity(1, ()), "buckets are []"),
        (lambda: AdaptiveCapacity(1, (4, 4)), "buckets are [4, 4], expected increasing"),
        (lambda: AdaptiveCapacity(1, (0, 4)), "buckets are [0, 4]"),
        (lambda: AdaptiveCapacity(1, BUCKETS, hysteresis=1.0), "hysteresis is 1.0, expected a share in [0, 1)"),
        (lambda: AdaptiveCapacity(1, BUCKETS, initial=81), "slots is 81"),
        (lambda: AdaptiveCapacity(1, BUCKETS).observe(1, 100), "slots is 100"),
        (
            lambda: AdaptiveCapacity(1, BUCKETS).restore({"bucket": 10}),
            "saved state lacks buckets, changes, decided_at, largest_seen, used",
        ),
        (
            lambda: AdaptiveCapacity(1, BUCKETS).restore(AdaptiveCapacity(1, (1, 2)).state()),
            "saved state has buckets [1, 2], expected [10, 20, 40, 80]",
        ),
    ],
)
def test_bad_arguments_are_named(call, fragment):
    with pytest.raises(InputError) as caught:
        call()
    assert fragment in str(caught.value)


def test_decisions_by_hand():
    capacity = AdaptiveCapacity(interval=10, buckets=BUCKETS, hysteresis=0.1, initial=35)
    assert capacity.bucket == 40
    table = [
        (1, 12, 20),  # the first observation decides
        (2, 70, 20),  # within the interval: remembered
        (10, 9, 20),
        (11, 9, 80),  # the 70 seen since asks for 80
        (21, 37, 80),  # 37 of 40 leaves less than a tenth free
        (31, 36, 40),  # 36 leaves exactly a tenth
        (41, 40, 40),  # full, but it holds
        (50, 3, 40),
        (55, 3, 10),  # past the interval, at the next observation
        (64, 11, 10),
        (65, 10, 20),
    ]
    for step, slots, bucket in table:
        assert capacity.observe(step, slots) == bucket, step
    assert capacity.changes == 5
    assert capacity.graphs == 4


@pytest.mark.parametrize(
    "hysteresis, buckets_in_force",
    [
        (0.0, [20, 10, 20, 10]),
        (0.2, [20, 20, 20, 20]),
    ],
)
def test_hysteresis_keeps_a_wavering_bound_in_one_bucket(hysteresis, buckets_in_force):
    capacity = AdaptiveCapacity(1, BUCKETS, hysteresis)
    assert [capacity.observe(step, slots) for step, slots in enumerate((11, 9, 11, 9))] == buckets_in_force


def test_starts_with_the_largest_bucket():
    capacity = AdaptiveCapacity(1, BUCKETS)
    assert (capacity.bucket, capacity.changes, capacity.graphs) == (80, 0, 1)


@given(st.lists(st.integers(1, 80), min_size=1, max_size=40), st.data())
def test_resumed_run_goes_on_identically(observed, data):
    cut = data.draw(st.integers(0, len(observed)))
    interval, hysteresis = data.draw(st.integers(1, 7)), data.draw(st.sampled_from((0.0, 0.1, 0.5)))
    whole = AdaptiveCapacity(interval, BUCKETS, hysteresis)
    expected = [whole.observe(step, slots) for step, slots in enumerate(observed)]
    first = AdaptiveCapacity(interval, BUCKETS, hysteresis)
    found = [first.observe(step, slots) for step, slots in enumerate(observed[:cut])]
    resumed = AdaptiveCapacity(interval, BUCKETS, hysteresis, initial=1)
    resumed.restore(json.loads(json.dumps(first.state())))
    found += [resumed.observe(cut + step, slots) for step, slots in enumerate(observed[cut:])]
    assert found == expected
    assert resumed.state() == whole.state()


@given(st.lists(st.integers(1, 80), min_size=1, max_size=40), st.sampled_from((0.0, 0.1, 0.5)))
def test_with_interval_one_nothing_observed_is_ever_too_large(observed, hysteresis):
    capacity = AdaptiveCapacity(1, BUCKETS, hysteresis)
    for step, slots in enumerate(observed):
        assert capacity.observe(step, slots) >= slots


def test_state_is_a_copy():
    capacity = AdaptiveCapacity(1, BUCKETS)
    state = capacity.state()
    capacity.observe(0, 5)
    assert state["bucket"] == 80 and state["used"] == [80] and state["changes"] == 0


@pytest.mark.parametrize(
    "observed, buckets_in_force",
    [
        ([0], [0]),
        ([100, 0], [100, 0]),
        ([100, 0, 1], [100, 0, 10]),  # up at once
        ([100, 9, 10, 8], [100, 10, 10, 10]),  # a tenth of 10 stays free
        ([100, 10], [100, 100]),  # nothing of 10 would
    ],
)
def test_a_bucket_may_be_none(observed, buckets_in_force):
    policy = AdaptiveCapacity(1, (0, 10, 100), hysteresis=0.1, least=0)
    assert [policy.observe(step, slots) for step, slots in enumerate(observed, 1)] == buckets_in_force
    restored = AdaptiveCapacity(1, (0, 10, 100), hysteresis=0.1, least=0)
    restored.restore(policy.state())
    assert restored.bucket == policy.bucket


def test_none_is_a_bucket_only_where_it_is_asked_for():
    with pytest.raises(InputError, match="at least 1"):
        AdaptiveCapacity(1, (0, 10))
    with pytest.raises(InputError, match="slots"):
        AdaptiveCapacity(1, (1, 10)).observe(1, 0)
    with pytest.raises(InputError, match="slots"):
        AdaptiveCapacity(1, (0, 10), least=0).observe(1, -1)
