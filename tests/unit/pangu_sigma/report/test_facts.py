"""What a report says of its runs besides their numbers, and what it says where that is not known."""

import json

import pytest

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.report import facts as facts_module
from pangu_sigma.report.comparison import SimulatedCluster
from pangu_sigma.report.facts import NOT_NOTED, RunVocabulary, cluster_text, facts_table, ranks_text, run_facts

LAUNCH = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "pangu-sigma train a.yaml",
    "ranks": 4,
    "nodes": 2,
    "host": "box",
    "cpu": "Some CPU",
    "cpus": 8,
    "memory(B)": 64_000_000_000,
    "chip": None,
    "cann": None,
    "python": "3.11.7",
    "packages": {"mindspore": "2.7.0", "numpy": "1.26.4"},
    "version": "0.3.0",
    "commit": "0123456789abcdef0123",
    "changed_since_commit": True,
}


def config(**parallel):
    raw = {
        "model": {"hidden_size": 16, "num_heads": 2, "sequence_length": 32, "dense_layers": 1, "sparse_layers": 1},
        "moe": {"num_experts": 4, "logical_topology": parallel.pop("logical_topology", None)},
        "optimizer": {"warmup_steps": 1},
        "train": {"steps": 10, "global_batch_size": 4},
        "data": {"path": "absent"},
        "parallel": parallel,
    }
    return config_from_dict(raw)


def noted(tmp_path, *launches):
    (tmp_path / "environment.json").write_text(json.dumps({"launches": list(launches)}))
    return run_facts(tmp_path, config(expert=4, ranks_per_node=2))


def test_what_environment_json_says(tmp_path):
    facts = noted(tmp_path, LAUNCH)
    assert facts["ranks"] == "4 ranks on 2 nodes of 2, expert-parallel 4"
    assert facts["date"] == LAUNCH["date"] and facts["command"] == LAUNCH["command"]
    assert facts["machine"] == "box, Some CPU, 8 CPUs, 64 GB of memory"
    assert (
        facts["versions"]
        == "pangu-sigma 0.3.0, Python 3.11.7, mindspore 2.7.0, numpy 1.26.4, commit 0123456789ab, changed since"
    )
    assert facts["model"] == (
        "1 dense + 1 sparse layers and a query layer, hidden 16, 2 heads, sequences of 32; 4 experts a sparse layer"
    )
    assert facts["router"] == "locmoe, top-1"


def test_shared_experts_are_told(tmp_path):
    moe = {"num_experts": 16, "num_groups": 2, "shared_experts": 2, "router": {"top_k": 8}}
    facts = run_facts(tmp_path, config_from_dict({"moe": moe}))
    assert facts["model"].endswith("; 16 experts in 2 groups and 2 shared a sparse layer")
    assert facts["router"] == "locmoe, top-8"


def test_a_run_on_ascend_that_was_resumed(tmp_path):
    later = {**LAUNCH, "date": "2026-02-02T00:00:00+00:00", "chip": "910B", "cann": "8.0", "cpu": None}
    facts = noted(tmp_path, LAUNCH, later)
    assert facts["date"] == f"{LAUNCH['date']}, resumed 1 time, last {later['date']}"
    assert "Ascend 910B" in facts["machine"] and "CANN 8.0" in facts["versions"]


@pytest.mark.parametrize("content", [None, "", "[]", '{"launches": 3}', '{"launches": [1]}', '{"launches": []}'])
def test_what_is_not_known_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "environment.json").write_text(content)
    facts = run_facts(tmp_path, config())
    assert {name for name, text in facts.items() if text == NOT_NOTED} == {
        "parameters",
        "ranks",
        "date",
        "machine",
        "versions",
        "command",
    }
    assert facts["data"] == "absent"


@pytest.mark.parametrize(
    ("parallel", "ranks", "text"),
    [
        ({}, None, NOT_NOTED),
        ({}, 1, "1 rank on 1 node"),
        ({"expert": 4}, 4, "4 ranks on 1 node, expert-parallel 4"),
        ({"expert": 4, "ranks_per_node": 2}, 4, "4 ranks on 2 nodes of 2, expert-parallel 4"),
        ({"tensor": 2, "ranks_per_node": 2}, 2, "2 ranks on 1 node, tensor-parallel 2"),
        ({"ranks_per_node": 2}, 3, "3 ranks on 1 node"),
        (
            {"logical_topology": {"world_size": 4, "ranks_per_node": 2, "expert": 4}},
            1,
            "1 rank on 1 node; locality as on 4 ranks on 2 nodes",
        ),
    ],
)
def test_ranks_and_the_nodes_that_they_play(parallel, ranks, text):
    assert ranks_text(config(**parallel), ranks) == text


@pytest.mark.parametrize(
    ("nodes", "workers", "text"),
    [(2, 2, "4 ranks on 2 nodes of 2, simulated, expert-parallel 4"), (1, 4, "4 ranks on 1 node, expert-parallel 4")],
)
def test_clusters_of_a_comparison(nodes, workers, text):
    assert cluster_text(config(expert=4), SimulatedCluster(nodes, workers, None, False)) == text


def test_values_that_differ_are_each_shown_with_their_runs():
    runs = [("a", {"model": "m", "date": "1"}), ("b", {"model": "m", "date": "2"}), ("c", {"model": "m", "date": "1"})]
    assert facts_table(runs) == [["model", "m"], ["date", "1 (a, c); 2 (b)"]]


@pytest.mark.parametrize(("length", "shown"), [(1, 6), (91, 3), (1000, 1)])
def test_of_long_values_some_are_shown(length, shown):
    """A value and ` (6 runs)` are `length` + 9 characters; up to 300 are shown, and one in any case."""
    runs = [(f"run_{number}", {"command": str(number // 6) * length}) for number in range(36)]
    ((_, text),) = facts_table(runs)
    more = [f"and {6 - shown} more"] if shown < 6 else []
    assert text.split("; ") == [f"{str(number) * length} (6 runs)" for number in range(shown)] + more


def test_parameters_are_of_the_vocabulary(tmp_path, monkeypatch):
    """320 more words are 320 x 16 more numbers."""
    totals = []
    for words in (320, 640):
        monkeypatch.setattr(facts_module, "find_vocabulary", lambda *_, n=words: RunVocabulary(n, ("en",)))
        total, _, rest = run_facts(tmp_path, config())["parameters"].partition(", of which ")
        totals.append(int(total.replace(",", "")))
        assert "in experts; a token passes" in rest
    assert totals[1] - totals[0] == 320 * 16
