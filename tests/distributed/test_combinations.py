"""`pangu-sigma audit` with each router and each dispatcher at least once, those of docs/routers.md and
docs/dispatchers.md too: what the first of two ranks exchanges is what is planned. That ranks agree is shown where all
of them compile or run (test_audit.py, test_dispatch.py, tests/numerics); every pair, in larger jobs, on all ranks:
`scripts/check_audit.py`.
"""

import pytest

from helpers.exported import both_like_the_first, export_first
from helpers.pages import OWN, write_own
from helpers.traces import made_up_trace
from locmoe_ops.dispatch.registry import remove_dispatcher
from locmoe_ops.router_registry import remove_router, routers
from locmoe_ops.routing_trace import to_bytes
from pangu_sigma.audit.audit import audited_job
from pangu_sigma.audit.checks import check
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.planner.exchanges import step_exchanges
from pangu_sigma.runtime.router_files import VARIABLE, use_router_files

MODEL = {
    "hidden_size": 16,
    "num_heads": 2,
    "ffn_hidden_size": 24,
    "dense_layers": 0,
    "sparse_layers": 1,
    "sequence_length": 8,
    "vocab_size": 50,
}
CASES = {
    "hash": {"dispatch": {"type": "ragged"}, "router": {"top_k": 2, "hash": {"weights": "gate"}}},
    "switch": {"dispatch": {"type": "flat", "chunks": 2}, "router": {"switch": {"jitter": 0.1}}},
    "locmoe": {
        "dispatch": {"type": "hierarchical"},
        "capacity": {"measured_share": {}},
        "router": {"locmoe": {"ties": "noise", "centre_rate": 0.5}, "locality_loss": {"initial_weight": 1.0}},
    },
    "gshard": {"dispatch": {"type": "ragged", "ragged_limit": 1.5}, "router": {"top_k": 2}},
    "faster_moe": {
        "dispatch": {"type": "hierarchical", "chunks": 2},
        "capacity": {"local_share": 0.75},
        "router": {"top_k": 2, "faster_moe": {"rule": "fastmoe"}},
    },
    "smile": {"dispatch": {"type": "hierarchical"}, "router": {"smile": {"num_nodes": 2}}},
    "c2r": {"dispatch": {"type": "flat"}, "num_groups": 1, "router": {"top_k": 2, "c2r": {"num_devices": 2}}},
    "ta_moe": {"dispatch": {"type": "flat", "overflow": "repick"}},
    "etr": {
        "dispatch": {"type": "node_dedup", "drop_priority": "weight"},
        "router": {"top_k": 2, "etr": {"expert_choice_start_step": 1}},
    },
    "replay": {"router": {"top_k": 2}},
    "topk": {
        "dispatch": {"type": "flat"},
        "router": {
            "balance": {"kind": "quantile", "bins": 20},
            "statistics": "expert_parallel",
            "topk": {"score_function": "sqrt_softplus", "sequence_loss_weight": 0.1, "z_loss_weight": 0.1},
        },
    },
    "node_limited": {
        "dispatch": {"type": "hierarchical"},
        "num_groups": 1,
        "router": {
            "top_k": 2,
            "balance": {"kind": "pid"},
            "node_limited": {"max_nodes": 1, "aux_loss_weight": 0.0, "score_function": "sigmoid"},
        },
    },
    "moge": {"dispatch": {"type": "flat"}, "router": {"top_k": 2, "balance": {"kind": "sign"}}},
    OWN["routers.md"]: {"dispatch": {"type": OWN["dispatchers.md"]}},
}
# Two sparse layers, the query layer being one: with losses that are summed in both, and with a router each.
TWO_LAYERS = ("topk", "by layer")
BY_LAYER = {
    "dispatch": {"type": "flat"},
    "router": {"type": "locmoe", "statistics": "node", "balance_rate": 0.01},
    "routers": [{"layers": [0], "type": "hash"}],
}


# Gradients that set out in the last of two micro-batches, in half precision, as tokens travel.
MICRO_BATCHES = {
    "gshard": {
        "train": {"steps": 2, "global_batch_size": 4, "micro_batch_size": 1},
        "parallel": {"expert": 2, "ranks_per_node": 1, "reduce_precision": "bf16"},
        "runtime": {"precision": "bf16"},
    }
}


TRACE = made_up_trace(length=MODEL["sequence_length"], layers=1)  # of eight experts in one group


def job_of(name):
    own = CASES.get(name, BY_LAYER)
    experts = TRACE.num_experts if name == "replay" else 4
    router = {"type": name, **own.get("router", {})}
    moe = {"num_experts": experts, "num_groups": 2, **own, "router": router}
    return audited_job(
        config_from_dict(
            {
                "model": {**MODEL, "sparse_query_layer": name in TWO_LAYERS},
                "moe": moe,
                "optimizer": {"warmup_steps": 1},
                "train": {"steps": 2, "global_batch_size": 2},
                "parallel": {"expert": 2, "ranks_per_node": 1},
                "data": {"path": "no such folder"},
                **MICRO_BATCHES.get(name, {}),
            }
        ),
        2,
        1,
    )


@pytest.fixture(scope="module")
def own_files(tmp_path_factory):
    """The pages' router and dispatcher, as `--router-file` adds them."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "")
        (folder / "trace.safetensors").write_bytes(to_bytes(TRACE))
        patch.setitem(CASES["replay"]["router"], "replay", {"trace": str(folder / "trace.safetensors")})
        use_router_files([str(write_own(page, folder)) for page in OWN])
        yield
    remove_router(OWN["routers.md"])
    remove_dispatcher(OWN["dispatchers.md"])


@pytest.fixture(scope="module")
def graphs(own_files, tmp_path_factory):
    """All cases, compiled as by the first of two ranks on two nodes."""
    folder = tmp_path_factory.mktemp("graphs")
    for name in (*CASES, "by layer"):
        (folder / name).mkdir()
        export_first(job_of(name), folder / name)
    return folder


@pytest.mark.usefixtures("own_files")
def test_each_router_is_there():
    assert set(CASES) == set(routers())


@pytest.mark.parametrize("name", [*CASES, "by layer"])
def test_audit(graphs, name):
    job = job_of(name)
    ranks = both_like_the_first(job, graphs / name)
    assert check(ranks, step_exchanges(job), job.topology) == []
    names = ["copies", "micro_batch", "last_micro_batch"] if name in MICRO_BATCHES else ["step"]
    assert [graph.name for graph in ranks[0].graphs] == names
    assert (
        sum("all_to_all" in collective.operation for graph in ranks[0].graphs for collective in graph.collectives) >= 4
    )
