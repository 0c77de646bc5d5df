"""Small configurations, and the network that the program would build for them: one of several ranks, alone and never
run.
"""

from typing import Callable

import pytest

from helpers.merged import merged
from locmoe_ops.collectives.local import AbsentPeers
from locmoe_ops.tensor_parallel import TensorGroup
from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.sparse import SparseContext
from pangu_sigma.planner.job import PlannedJob, plan_job

WORDS, DOMAINS = 24, 2
BASE = {
    "model": {
        "hidden_size": 16,
        "num_heads": 4,
        "ffn_hidden_size": 24,
        "dense_layers": 1,
        "sparse_layers": 1,
        "sequence_length": 12,
        "vocab_size": WORDS,
    },
    "moe": {"num_experts": 8, "num_groups": DOMAINS},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": 4, "global_batch_size": 8},
    "data": {"path": "no such folder"},
}


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """`make_config(section={key: value}, ...)`: the base with changes."""
    return lambda **changes: config_from_dict(merged(BASE, changes))


@pytest.fixture
def make_job(make_config: Callable[..., Config]) -> Callable[..., PlannedJob]:
    """`make_job(nodes, devices, section={...}, ...)`"""
    return lambda nodes=1, devices=1, **changes: plan_job(make_config(**changes), nodes, devices)


@pytest.fixture
def build() -> Callable[[PlannedJob], PanGuSigma]:
    """The network of a job's last rank."""

    def built(job: PlannedJob) -> PanGuSigma:
        topology: Topology = job.topology
        collectives = AbsentPeers(topology.world_size - 1, topology)
        shape = model_dims(job.config, job.rows, job.words, job.domains, TensorGroup(collectives))
        return PanGuSigma(SparseContext(job.config, shape, collectives))

    return built
