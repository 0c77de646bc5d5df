"""Closed forms against the built network: every name, shape and order."""

import math

import pytest

from locmoe_ops.tensor_parallel import slice_of, whole_shape
from pangu_sigma.config.load import load_config
from pangu_sigma.model.parameter_groups import is_expert_parameter, ordered_parameters
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.parameters import count_parameters, in_gradient_order, parameters

LAYERS = {
    "dense only": {"dense_layers": 3, "sparse_layers": 0},
    "sparse only": {"dense_layers": 0, "sparse_layers": 2},
    "sparse query layer": {"sparse_query_layer": True},
    "query layer alone": {"dense_layers": 0, "sparse_layers": 0},
    "a slot a domain": {"domain_embeddings": True},
    "default width": {"ffn_hidden_size": None},
}
ROUTERS = {
    "hash": {},
    "switch": {},
    "locmoe": {"locmoe": {"gate": "dense"}},
    "gshard": {"top_k": 2},
    "faster_moe": {},
    "ta_moe": {},
    "etr": {},
    "topk": {"top_k": 2, "balance": {"kind": "pid"}},
    "node_limited": {"top_k": 2},
    "moge": {"top_k": 2},
    "smile": {"smile": {"num_nodes": 2}},
    "c2r": {},
}
DEGREES = [(1, 1), (4, 1), (2, 2), (1, 4)]  # expert, tensor
CASES = [
    *(({"model": model}, (1, 1)) for model in LAYERS.values()),
    *(
        (
            {
                "moe": {
                    "router": {"type": kind, **own},
                    "dispatch": {"drop_priority": "weight" if kind == "etr" else "position"},
                }
            },
            (2, 2),
        )
        for kind, own in ROUTERS.items()
    ),
    *(({"model": {"sparse_query_layer": True, "domain_embeddings": True}}, degree) for degree in DEGREES),
    *(({"moe": {"router": {"type": "hash", "top_k": 2, "hash": {"weights": "gate"}}}}, degree) for degree in DEGREES),
    (
        {
            "model": {"sparse_layers": 2, "sparse_query_layer": True},
            "moe": {
                "router": {"type": "switch", "balance_rate": 0.01},
                "routers": [{"layers": [0], "type": "hash"}, {"layers": [1], "type": "locmoe"}],
            },
        },
        (2, 2),
    ),
    *(({"model": {"sparse_query_layer": True}, "moe": {"shared_experts": 2}}, degree) for degree in ((1, 1), (2, 2))),
    (
        {
            "moe": {
                "router": {"balance_rate": 0.01, "locality_bias": {"kind": "bias"}},
                "dispatch": {"overflow": "repick"},
            }
        },
        (4, 1),
    ),
]


@pytest.mark.parametrize(("changes", "degree"), CASES)
def test_every_tensor_is_that_of_the_network(make_job, build, changes, degree):
    """Name, shape, the axis that tensor parallelism splits, in the network's order and in that of gradients."""
    job = make_job(2, 4, parallel={"expert": degree[0], "tensor": degree[1]}, **changes)
    built = build(job).trainable_params()
    found = parameters(job)
    assert [(p.name, p.shape) for p in found] == [(p.name, tuple(p.shape)) for p in built]
    assert [p.shard and p.shard.axis for p in found] == [slice_of(p) and slice_of(p).axis for p in built]
    assert [p.name for p in in_gradient_order(job)] == [p.name for p in ordered_parameters(built, slice_of)]


@pytest.mark.parametrize("degree", DEGREES)
def test_totals_are_those_of_the_whole_network(make_job, build, degree):
    """The parts of all ranks: whole shapes of one rank's tensors, experts as often as ranks hold others."""
    job = make_job(2, 4, parallel={"expert": degree[0], "tensor": degree[1]}, moe={"router": {"type": "switch"}})
    built = build(job).trainable_params()
    whole = sum(math.prod(whole_shape(p)) * (degree[0] if is_expert_parameter(p.name) else 1) for p in built)
    counts = count_parameters(job)
    assert (
        counts.total
        == whole
        == sum(p.size for p in build(make_job(moe={"router": {"type": "switch"}})).trainable_params())
    )
    assert counts.rank == sum(p.size for p in built)


def test_all_shared_experts_are_active(make_job):
    plain, shared = (count_parameters(make_job(moe={"shared_experts": count})) for count in (0, 3))
    network = 16 * 3 * 24 + 3 * 24 + 3 * 24 * 16 + 16  # of three times 24 inner features, with one bias of the output
    assert shared.total - plain.total == shared.active - plain.active == network
    assert shared.experts == plain.experts


def test_a_token_passes_through_some_experts_and_one_word_table(make_job):
    job = make_job(
        model={"domain_embeddings": True, "sparse_query_layer": True}, moe={"router": {"type": "gshard", "top_k": 2}}
    )
    expert = 16 * 24 + 24 + 24 * 16 + 16
    assert count_parameters(job).total - count_parameters(job).active == 2 * (8 - 2) * expert + 24 * 16
    dense = make_job(model={"sparse_layers": 0})
    assert count_parameters(dense).active == count_parameters(dense).total


def test_shipped_trillion_has_the_published_size():
    """1.085T (arXiv 2303.10845), within 0.1 %; one expert group of 640 / 40 experts with the rest, about 38B."""
    job = plan_job(load_config("configs/ascend/pangu_sigma_1085b_512.yaml"), 64, 8)
    counts = count_parameters(job)
    assert counts.total == pytest.approx(1.085e12, rel=1e-3)
    assert counts.total - counts.experts * 39 // 40 == pytest.approx(38e9, rel=0.01)
