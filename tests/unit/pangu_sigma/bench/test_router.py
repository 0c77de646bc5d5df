"""`bench router`: which routers, on which tokens, and how many bytes; times are only checked to be there."""

import re

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.bench import router as bench
from pangu_sigma.config.load import config_from_dict

pytestmark = pytest.mark.compiles

BASE = {
    "model": {"hidden_size": 16, "num_heads": 2, "sequence_length": 8},
    "moe": {"num_experts": 8, "num_groups": 2},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": 1, "global_batch_size": 8},
    "runtime": {"device": "cpu"},
}


def config_of(**sections):
    return config_from_dict({**BASE, **{name: {**BASE.get(name, {}), **section} for name, section in sections.items()}})


@pytest.mark.parametrize(
    ("sections", "layout", "rows"),
    [
        ({}, (1, 1, 1), 8),
        ({"parallel": {"expert": 4, "ranks_per_node": 2}}, (4, 2, 4), 2),
        ({"parallel": {"expert": 2, "ranks_per_node": 4}}, (4, 4, 2), 2),
        (
            {"parallel": {"expert": 4}, "train": {"steps": 1, "global_batch_size": 16, "micro_batch_size": 1}},
            (4, 4, 4),
            1,
        ),
        (
            {"moe": {"num_experts": 8, "logical_topology": {"world_size": 8, "ranks_per_node": 2, "expert": 4}}},
            (8, 2, 4),
            1,
        ),
    ],
)
def test_tokens_are_those_of_one_rank(sections, layout, rows):
    config = bench.one_rank_of(config_of(**sections))
    found = config.moe.logical_topology
    assert (found.world_size, found.ranks_per_node, found.expert) == layout
    assert config.train.micro_batch_size == rows
    bench.validate(config, 1)


def test_every_router_has_a_row_or_a_reason():
    """16 features are no 3 equal blocks, so no averaging gate; a local term, which hash refuses, is left off."""
    config = bench.one_rank_of(
        config_of(
            moe={
                "num_experts": 6,
                "router": {"type": "locmoe", "locality_bias": {"kind": "bias"}, "balance_rate": 0.01},
            }
        )
    )
    found, left_out = bench.routers_of(config)
    assert [candidate.name for candidate in found] == [
        "switch",
        "c2r",
        "faster_moe",
        "gshard",
        "hash",
        "locmoe, dense gate",
        "moge",
        "node_limited",
        "smile",
        "ta_moe",
        "topk",
    ]
    assert [reason.partition(":")[0] for reason in left_out] == ["etr", "locmoe, grap gate", "replay"]
    assert {candidate.config.moe.router.locality_bias.kind for candidate in found} == {"none"}
    assert [candidate.config.moe.router.top_k for candidate in found] == [1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1]


def test_what_fits_no_router_is_bad_input():
    with pytest.raises(InputError, match=r"moe.num_groups \(2\) does not divide moe.num_experts \(3\)"):
        bench.bench_router(config_of(moe={"num_experts": 3}))


def test_table(monkeypatch, capsys):
    """Statistics are counts and probabilities, <float32>[S, 2E] with E = 8; S is 1 for all tokens, 2 for two nodes."""
    monkeypatch.setattr(bench, "WARM_UP", 1)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    assert (
        bench.bench_router(
            config_of(
                parallel={"expert": 4, "ranks_per_node": 2},
                moe={
                    "router": {
                        "locmoe": {"gate_input": "word", "blocks": "by_layer"},
                        "smile": {"num_nodes": 2},
                        "moge": {"device_groups": 1},
                    }
                },
            )
        )
        == 0
    )
    head, _, _, titles, _, *rows, left_out = capsys.readouterr().out.splitlines()
    assert left_out.startswith("left out: replay: moe.router.replay.trace is null")
    assert head == "16 tokens of one of 4 ranks, hidden size 16, 8 experts in 2 groups, fp32"
    assert titles.split() == ["router", "ms", "of", "switch", "statistics", "(B)"]
    assert all(len(row) <= 79 for row in rows)
    found = {
        name.strip(): (float(ms), float(share), int(size))
        for name, ms, share, size in (
            re.fullmatch(r"(.+?) {2,}([\d.]+) +([\d.]+) +([\d,]+)", row).groups() for row in rows
        )
    }
    whole, by_node = 1 * 2 * 8 * 4, 2 * 2 * 8 * 4
    assert {name: size for name, (*_, size) in found.items()} == {
        "switch": whole,
        "hash": 0,
        "locmoe, grap gate": by_node,
        "locmoe, dense gate": by_node,
        "gshard": whole,
        "faster_moe": whole,
        "ta_moe": by_node,
        "etr": by_node,
        "smile": whole,
        "c2r": whole,
        "topk": whole,
        "node_limited": whole,
        "moge": whole,
    }
    assert found["switch"][1] == 1.0 and all(ms > 0 for ms, *_ in found.values())
