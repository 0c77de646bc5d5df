"""Moments that ranks share out: set from whole arrays, each rank keeps its stretch; gathered, they are those arrays."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore import Parameter, Tensor

from pangu_sigma.train import optimizer_state
from pangu_sigma.train.optimizer_state import ShardedMoments
from pangu_sigma.train.sharding import plan_shards

RANKS = 3
SHAPES = {"a.weight": (4, 3), "b.weight": (5,), "c.weight": (2, 2), "c.bias": (7,)}


@pytest.fixture
def ranks(monkeypatch):
    """`ShardedMoments` of each rank, with the stretches that they hold; gathering joins what all ranks hold now."""
    parameters = [Parameter(Tensor(np.zeros(shape, np.float32)), name=name) for name, shape in SHAPES.items()]
    buckets = plan_shards(parameters, 0, RANKS)
    assert any(bucket.end - bucket.start > 1 for bucket in buckets)
    held = [
        [[Parameter(Tensor(np.zeros(b.stretch, np.float32))) for b in buckets] for _ in range(2)] for _ in range(RANKS)
    ]

    def gather(stretch):
        (moment, bucket) = next((m, b) for own in held for m in range(2) for b, s in enumerate(own[m]) if s is stretch)
        return Tensor(np.concatenate([own[moment][bucket].asnumpy() for own in held]))

    monkeypatch.setattr(optimizer_state, "HierarchicalAllGather", lambda *_: gather)
    return [
        ShardedMoments(
            SimpleNamespace(group="dp", ranks=RANKS, parameters=parameters, buckets=buckets, place=place),
            *held[place],
            None,
        )
        for place in range(RANKS)
    ]


def values(seed):
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}{name}": rng.standard_normal(shape).astype(np.float32)
        for prefix in ("adam_m.", "adam_v.")
        for name, shape in SHAPES.items()
    }


def test_what_is_set_on_all_ranks_is_gathered_on_each(ranks):
    wanted = values(0)
    for rank in ranks:
        entries = {entry.name: entry for entry in rank.entries()}
        assert {name: entry.shape for name, entry in entries.items()} == {n: v.shape for n, v in wanted.items()}
        for name, value in wanted.items():
            entries[name].set(value)
    for rank in ranks:
        found = {entry.name: entry.get() for entry in rank.gather(keep=True)}
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert rank.gather(keep=False) == []


def test_a_moment_is_not_read_before_it_is_gathered(ranks):
    with pytest.raises(RuntimeError, match="gathered"):
        ranks[0].entries()[0].get()
