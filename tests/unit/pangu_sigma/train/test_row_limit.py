"""More rows than ragged dispatch has room for end a job on hccl too, whatever the device makes of NaN."""

import numpy as np
import pytest

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.local import AbsentPeers
from locmoe_ops.collectives.rows import FirstRows
from locmoe_ops.errors import CollectiveError
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine

WORDS = Vocabulary(29, 2, np.ones(29, np.int64))


class Counts(nn.Cell):
    """Gathers the counts of two ranks, of which the other sends all of its rows here."""

    def construct(self, own):
        here = own.sum(1, keepdims=True)
        return ops.concat((own, ops.concat((here, ops.zeros_like(here)), 1)))


class Exchange(nn.Cell):
    """As hccl does it: NaN where too many rows come; on a device that saturates 0 in its place."""

    def __init__(self, size, saturates):
        super().__init__()
        self.first, self.saturates = FirstRows(size.limit), saturates
        self.source = Tensor(np.minimum(np.arange(size.limit), size.rows - 1).astype(np.int32))

    def construct(self, rows, counts):
        count = counts[:, 0].sum()
        found = self.first(rows, self.source, count, count)
        return ops.select(ops.isnan(found), ops.zeros_like(found), found) if self.saturates else found


class Overrun(AbsentPeers):
    """The first of two ranks."""

    def __init__(self, saturates):
        super().__init__(0, Topology(2, 2, 2))
        self.saturates = saturates

    def _cell(self, operation, *rest):
        return Counts() if operation == "all_gather" else nn.Identity()

    def _uneven(self, group, tag, size):
        return Exchange(size, self.saturates)


@pytest.mark.parametrize("saturates", [False, True])
def test_the_host_ends_the_job(networks, saturates):
    config = networks.small_config(
        {"dense_layers": 0},
        {"router": {"type": "hash"}, "dispatch": {"type": "ragged", "ragged_limit": 1.0}},
        train={"global_batch_size": 4, "steps": 10},
        parallel={"expert": 2},
    )
    engine = TrainEngine(config, Runtime(Overrun(saturates)), WORDS)
    batches = [random_batch(2, 12, WORDS)]
    with pytest.raises(CollectiveError, match=r"step 3: \d+ rows came .*; raise moe.dispatch.ragged_limit"):
        engine.train_step(batches, 3, 0.01)
