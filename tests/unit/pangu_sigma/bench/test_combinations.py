"""Every router with every dispatcher: what validates can be planned and benchmarked, and decodes. Times are only
checked to be there.

tests/distributed/test_combinations.py audits some of them, and runs the dispatchers between ranks.
"""

import json
import re
from argparse import Namespace
from itertools import product

import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import routers
from pangu_sigma.bench import decode as bench_decode
from pangu_sigma.bench import router as bench_router
from pangu_sigma.bench import step as bench
from pangu_sigma.bench.timing import even_vocabulary
from pangu_sigma.cli.plan import plan
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate
from pangu_sigma.inference.load import inference_config

pytestmark = pytest.mark.compiles

DISPATCHERS = ("flat", "hierarchical", "ragged")
ASKED_FOR = {
    "gshard": {"moe.router.top_k": 2},
    "etr": {"moe.dispatch.drop_priority": "weight"},
    "moge": {"moe.router.top_k": 2},  # one from each of two devices
    "smile": {"moe.router.smile.num_nodes": 2},
    "c2r": {"moe.router.top_k": 2},
}  # by routers, of other keys
PAIRS = [  # ("etr", "ragged") is refused: experts need slots to choose for; replay needs a trace of the very text
    pair for pair in product(sorted(set(routers()) - {"replay"}), DISPATCHERS) if pair != ("etr", "ragged")
]
SETTINGS = {
    "chunks": {"moe.dispatch.chunks": 3},
    "two tiers in chunks": {"moe.dispatch": {"type": "hierarchical", "chunks": 2}},
    "two tiers, none leaves": {"moe.dispatch.type": "hierarchical", "moe.capacity.local_share": 1.0},
    "two tiers, re-picked": {"moe.dispatch": {"type": "hierarchical", "overflow": "repick"}},
    "one copy a node": {"moe.dispatch": {"type": "node_dedup", "chunks": 2}, "moe.router.top_k": 2},
    "re-picked": {"moe.dispatch.overflow": "repick"},
    "ragged, limited": {"moe.dispatch": {"type": "ragged", "ragged_limit": 1.5}},
    "critical": {"moe.capacity.mode": "critical"},
    "adaptive in two tiers": {"moe.capacity": {"mode": "adaptive", "interval": 1}, "moe.dispatch.type": "hierarchical"},
    "noise": {"moe.router.locmoe.ties": "noise"},
    "two tiers, measured": {"moe.dispatch.type": "hierarchical", "moe.capacity.measured_share": {"interval": 1}},
    "centred, without ReLU": {"moe.router.locmoe": {"centre_rate": 0.5, "rectify": False, "noise_scale": 0.1}},
    "mu by a schedule": {"moe.router.locality_loss": {"initial_weight": 1.0, "warmup_steps": 1}},
    "unrectified": {"moe.router.locmoe.ties": "unrectified"},
    "codes of three domains": {"moe.router.locmoe.gate_input": "code", "moe.domain_groups": [0, 1, 1]},
    "experts choose late": {
        "moe.router.type": "etr",
        "moe.router.etr.expert_choice_start_step": 1,
        "moe.dispatch.drop_priority": "weight",
    },
    "the fastmoe library's cap": {
        "moe.router.type": "faster_moe",
        "moe.router.top_k": 2,
        "moe.router.faster_moe.rule": "fastmoe",
    },
    "words": {"moe.router.locmoe.gate_input": "word", "moe.router.locmoe.blocks": "by_layer"},
    "local term and bias": {
        "moe.router.locality_bias": {"kind": "margin", "strength": 0.5},
        "moe.router.balance_rate": 0.01,
    },
    "balance by quantiles": {"moe.router": {"type": "topk", "balance": {"kind": "quantile", "bins": 20}}},
    "sparse query layer": {"model.sparse_query_layer": True, "model.sparse_layers": 0, "model.dense_layers": 1},
    "word tables of domains": {"model.domain_embeddings": True, "moe.domain_groups": [1, 0, 0]},
    "half precision, ragged": {"runtime.precision": "fp16", "moe.dispatch.type": "ragged"},
    "another layout": {
        "moe.logical_topology": {"world_size": 2, "ranks_per_node": 1, "expert": 2},
        "moe.expert_placement": "node_grouped",
        "data.placement": "domain_by_node",
        "moe.dispatch.type": "hierarchical",
    },
    "experts on the host, in micro-batches": {"optimizer.expert_state": "host_dense", "train.micro_batch_size": 1},
    "sharded": {"optimizer.zero": "data_parallel"},
    "no experts": {"model.sparse_layers": 0, "model.dense_layers": 1},
}


def config_of(settings, mode="pynative"):
    raw = {
        "model": {
            "hidden_size": 16,
            "num_heads": 2,
            "dense_layers": 0,
            "sparse_layers": 1,
            "sequence_length": 8,
            "vocab_size": 24,
        },
        "moe": {"num_experts": 4, "num_groups": 2},
        "optimizer": {"warmup_steps": 1},
        "train": {"steps": 2, "global_batch_size": 4},
        "data": {"path": "no such folder"},
        "runtime": {"device": "cpu", "mode": mode},
    }
    for path, value in settings.items():
        *sections, name = path.split(".")
        section = raw
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    raw["moe"].setdefault("router", {}).setdefault("smile", {"num_nodes": 2})  # for the routers of `bench router`
    return config_from_dict(raw)


def pair_of(router, dispatcher):
    return {"moe.router.type": router, "moe.dispatch.type": dispatcher, **ASKED_FOR.get(router, {})}


EVERYTHING = {**{f"{router}, {dispatcher}": pair_of(router, dispatcher) for router, dispatcher in PAIRS}, **SETTINGS}
# Each dispatcher, with a few settings each: a case takes seconds even operation by operation. One is compiled.
STEPS = {
    "switch": {
        **pair_of("switch", "flat"),
        "moe.dispatch.chunks": 3,
        "moe.shared_experts": 2,
        "train.micro_batch_size": 2,
        "optimizer.expert_state": "host_dense",
    },
    "locmoe": {
        **pair_of("locmoe", "hierarchical"),
        "moe.dispatch.overflow": "repick",
        "moe.router.locmoe.ties": "noise",
    },
    "gshard": {**pair_of("gshard", "ragged"), "runtime.precision": "fp16"},
    "topk": {
        **pair_of("topk", "flat"),
        "moe.router.balance": {"kind": "quantile", "bins": 20},
        "moe.router.topk": {"score_function": "sigmoid", "sequence_loss_weight": 0.1, "z_loss_weight": 0.1},
    },
}


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    for module in (bench, bench_decode, bench_router):
        monkeypatch.setattr(module, "WARM_UP", 1)
        monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(bench, "MATMUL_SIZE", 16)
    monkeypatch.setattr(bench_decode, "PROBE", (16, 16))


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("nodes", [1, 2])
def test_plan(name, nodes, capsys):
    """On one rank, and on two nodes of two; as JSON and as a table."""
    config = config_of({**EVERYTHING[name], **({"parallel": {"expert": 4, "ranks_per_node": 2}} if nodes > 1 else {})})
    hardware = "910a" if config.runtime.precision == "fp16" else "cpu"  # each has a rate for that one alone
    options = {
        "cluster": None,
        "nodes": nodes,
        "ranks_per_node": nodes,
        "hardware": hardware,
        "tokens": None,
        "sweep": [],
    }
    plan(config, Namespace(**options, json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"] == nodes**2 and found["seconds"]["step"] > 0
    exchanged = {collective["operation"] for collective in found["collectives"]} & {"all_to_all", "all_to_all_v"}
    sparse = config.model.sparse_layers > 0 or config.model.sparse_query_layer
    assert bool(exchanged) == (sparse and nodes > 1)
    assert ("all_to_all_v" in exchanged) == (config.moe.dispatch.type == "ragged" and nodes > 1)
    plan(config, Namespace(**options, json=False))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 79


def test_the_one_pair_that_is_refused():
    with pytest.raises(InputError, match="moe.dispatch.type is ragged with moe.router.type etr"):
        validate(
            config_of({"moe.router.type": "etr", "moe.dispatch": {"type": "ragged", "drop_priority": "weight"}}), 1
        )


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_trains_can_also_answer(name):
    """`generate`, `export` and `bench decode` validate the same network with a configuration of their own."""
    config = config_of(EVERYTHING[name])
    validate(config, 1)
    validate(inference_config(config), 1)


@pytest.mark.parametrize("name, mode", [("switch", "pynative"), ("locmoe", "graph"), ("gshard", "pynative")])
def test_bench_step(name, mode, capsys):
    config = config_of(STEPS[name], mode)
    validate(config, 1)
    assert bench.bench_step(config) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 79
    rows = dict(re.findall(r"^([^\d\n]+?) +(\d+) +[\d.]+ +-?[\d.]+%$", shown, re.MULTILINE))
    sparse = config.model.sparse_layers + config.model.sparse_query_layer
    expected = {
        "head and loss": 1,
        "update": 1,
        "experts": sparse,
        "shared experts": sparse if config.moe.shared_experts else 0,
        "routing": sparse,
        "dispatch": sparse,
        "dense FFN": config.model.dense_layers + 1 - config.model.sparse_query_layer,
        "attention": config.model.dense_layers + config.model.sparse_layers + 1,
    }
    micro = config.train.global_batch_size // (config.train.micro_batch_size or config.train.global_batch_size)
    found = {name: int(times) // (1 if name == "update" else micro) for name, times in rows.items()}
    if config.model.dense_layers + config.model.sparse_layers == 0:
        del expected["attention"]
    assert found == {name: times for name, times in expected.items() if times}


@pytest.mark.parametrize("name", ["etr, hierarchical", "codes of three domains"])
def test_bench_decode(name, capsys):
    assert bench_decode.bench_decode(config_of(EVERYTHING[name]), [3]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "3"


@pytest.mark.parametrize("name", EVERYTHING)
def test_bench_router_has_the_same_rows_whatever_the_dispatcher(name):
    """Which are all routers, but for those that have no second experts where these are asked for."""
    config = bench_router.one_rank_of(config_of(EVERYTHING[name]))
    found, left_out = bench_router.routers_of(config)
    repick = config.moe.dispatch.overflow == "repick"
    # smile: of two nodes with an expert of a group each
    refused = {"replay", *({"smile"} if config.moe.router.top_k > 1 else set())}
    refused |= {"hash", "gshard", "c2r", "topk", "node_limited", "moge"} if repick else set()
    if config.moe.router.locmoe.ties != "first" or config.moe.router.locmoe.gate_input == "code":
        assert {candidate.config.moe.router.locmoe.ties for candidate in found} == {config.moe.router.locmoe.ties}
    if config.moe.router.locmoe.gate_input == "code":
        refused |= {"locmoe, dense gate"}
    assert {reason.partition(":")[0] for reason in left_out} == refused
    assert {candidate.config.moe.router.type for candidate in found} == set(routers()) - refused


@pytest.mark.parametrize(
    ("settings", "domains"), [({}, 2), ({"moe.domain_groups": [0, 1, 1]}, 3), ({"moe.domain_groups": [1]}, 1)]
)
def test_the_vocabulary_of_a_benchmark(settings, domains):
    found = even_vocabulary(config_of(settings))
    assert (found.vocab_size, found.domains, found.counts.shape) == (24, domains, (2, 24))
