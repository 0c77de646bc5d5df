"""Where a checkpoint brings the weights none are drawn; what the first rank sees on the disk decides."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindspore import Tensor, nn

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.local import AbsentPeers
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.resume import ResumeSource, restores_weights
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.host_sum import to_limbs
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train import engine as engine_module
from pangu_sigma.train.engine import TrainEngine

SOME = [Path("runs/a/checkpoints/step_3")]


class Sum(nn.Cell):
    """With what the first rank of two sends, by `HostSum`: 1 or 0."""

    def __init__(self, sees):
        super().__init__()
        self.more = Tensor(to_limbs(np.array([float(sees)])))

    def construct(self, limbs):
        return limbs + self.more


class FirstRankSees(AbsentPeers):
    """A sum with a first rank that sees a checkpoint, or none."""

    def __init__(self, rank, sees):
        super().__init__(rank, Topology(2, 2, 1))
        self.sees = sees

    def _cell(self, *_):
        return Sum(self.sees)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (ResumeSource([]), False),
        (ResumeSource(SOME), True),
        (ResumeSource([], initial=SOME[0]), True),
        (ResumeSource([], may_fall_back=True), False),
        (ResumeSource(SOME, may_fall_back=True), True),
        (ResumeSource([], may_fall_back=True, initial=SOME[0]), True),
    ],
)
def test_alone(source, expected):
    runtime = Runtime(create_collectives("local", Topology(1, 1), 0))
    assert restores_weights(source, runtime) == expected


@pytest.mark.parametrize("own", [[], SOME])
@pytest.mark.parametrize("first", [0, 1])
def test_another_ranks_view_of_the_disk_may_be_older(own, first):
    runtime = SimpleNamespace(is_first=False, collectives=FirstRankSees(1, first))
    assert restores_weights(ResumeSource(own, may_fall_back=True), runtime) == bool(first)


def test_an_engine_that_need_not_draw_does_not(networks, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("drawn")

    monkeypatch.setattr(engine_module, "initialise", refuse)
    config = networks.small_config({"dense_layers": 0}, {"router": {"type": "switch"}}, train={"global_batch_size": 3})
    words, runtime = Vocabulary(29, 2, np.ones(29, np.int64)), Runtime(create_collectives("local", Topology(1, 1), 0))
    assert not TrainEngine(config, runtime, words, draw=False).drawn
    with pytest.raises(AssertionError, match="drawn"):
        TrainEngine(config, runtime, words)
