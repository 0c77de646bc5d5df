"""Bytes that `pangu-sigma plan` predicts, against what four ranks that play two nodes, or four, count while they
train.
"""

import json

import pytest

from pangu_sigma.config.load import config_from_dict, load_config
from pangu_sigma.planner.exchanges import CAUSES, step_exchanges
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.traffic import by_cause

MODEL = {
    "hidden_size": 16,
    "num_heads": 2,
    "ffn_hidden_size": 24,
    "dense_layers": 0,
    "sparse_layers": 1,
    "sequence_length": 16,
    "vocab_size": 50,
}
# With the runs of sharding_worker.py, between them: all dispatchers with a fixed number of slots, in chunks and not,
# group-wise and not; experts with a replica on the other node; domains on two of four nodes each; several
# micro-batches; optimizer state shared out, of all parameters and of dense ones alone; both types of matmuls; losses
# over ranks, nodes and all tokens.
CASES = {
    "flat": {
        "moe": {"router": {"type": "switch", "top_k": 2, "statistics": "rank"}, "dispatch": {"chunks": 3}},
        "parallel": {"expert": 2, "ranks_per_node": 2},
        "train": {"global_batch_size": 8, "micro_batch_size": 1},
    },
    "hierarchical": {
        "model": {"sparse_query_layer": True},
        "moe": {
            "router": {"type": "locmoe"},
            "dispatch": {"type": "hierarchical", "chunks": 2},
            "capacity": {"local_share": 0.75},
        },
        "parallel": {"expert": 4, "ranks_per_node": 2},
    },
    "placed": {
        "moe": {"router": {"type": "locmoe"}, "dispatch": {"type": "hierarchical"}, "placement": "node_grouped"},
        "data": {"placement": "domain_by_node"},
        "parallel": {"expert": 4, "ranks_per_node": 1},
    },
    "group-wise": {
        "moe": {"router": {"type": "locmoe"}, "dispatch": {"type": "hierarchical", "group_wise": True}},
        "parallel": {"expert": 2, "tensor": 2, "ranks_per_node": 2},
        "runtime": {"precision": "fp16"},
    },
}


def configuration(name):
    given = {"optimizer": {"warmup_steps": 1}, "train": {"steps": 2, "global_batch_size": 4}, **CASES[name]}
    return {
        **given,
        "model": {**MODEL, **given.get("model", {})},
        "moe": {"num_experts": 8, "num_groups": 2, **given["moe"]},
        "train": {"steps": 2, **given["train"]},
    }


@pytest.fixture
def counted(sharding):
    """Bytes inside and between nodes that the ranks counted in a step, by case and cause."""
    return json.loads((sharding / "counted.json").read_text())


def check(counted, config):
    job = plan_job(config, 4 // config.parallel.ranks_per_node, config.parallel.ranks_per_node)
    planned = by_cause(step_exchanges(job), job.topology)
    for cause in CAUSES[:-1]:
        assert counted[cause] == list(planned[cause]), cause
    assert counted["total"] == [sum(part) for part in zip(*planned.values())]
    assert counted["total"][1] > 0


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_as_planned(counted, name):
    check(counted[name], config_from_dict(configuration(name)))


@pytest.mark.parametrize("name", ["whole", "shared", "other"])
def test_bytes_of_a_run_on_prepared_data_are_as_planned(counted, sharding, name):
    check(counted[name], load_config(sharding / f"{name}.yaml"))
