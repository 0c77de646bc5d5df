"""`pangu-sigma trace`: its numbers by hand, and what it prints."""

import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.traces import made_up_trace
from locmoe_ops.errors import InputError
from locmoe_ops.routing_trace import to_bytes
from pangu_sigma.cli.main import main
from pangu_sigma.metrics.definitions import DEFINITIONS
from pangu_sigma.report.traces import layer_measures, trace_agreement

TRACE = made_up_trace(rows=40)


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(**traces):
        for name, trace in traces.items():
            (tmp_path / f"{name}.safetensors").write_bytes(to_bytes(trace))
        return ["trace", *(f"{name}.safetensors" for name in traces)]

    return write


def test_measures_of_a_layer_by_hand():
    """Domain 0 uses experts 0 and 1 alike, domain 1 expert 4 and, for each fourth token, 5: load 4, 4, 6, 2 of 8."""
    expert = np.array([[0, 0, 1, 1], [4, 4, 4, 5], [0, 0, 1, 1], [4, 4, 4, 5]], np.int32)[None, ..., None]
    trace = replace(made_up_trace(length=4, layers=1, top_k=1), expert=expert, weight=np.ones(expert.shape, np.float32))
    (found,) = layer_measures(trace)
    assert found["trace/max_violation"] == 2.0 and found["trace/min_violation"] == 1.0  # mean 2 of 8 experts
    assert found["trace/specialisation"] == 1.0 and found["trace/tokens_by_nodes"] == [1.0]
    assert found["trace/effective_experts"] == pytest.approx({"en": 2.0, "zh": 4 / 27**0.25})  # 0.75 and 0.25
    assert found["trace/load_entropy"] == pytest.approx(
        -(2 * 0.25 * np.log(0.25) + 0.375 * np.log(0.375) + 0.125 * np.log(0.125)) / np.log(8)
    )


def test_several_nodes_by_hand():
    expert = np.array([[[0, 4], [1, 2], [0, 7], [4, 5]]] * 4, np.int32)[None]  # nodes 0-3 and 4-7
    trace = replace(made_up_trace(length=4, layers=1), expert=expert, weight=np.ones(expert.shape, np.float32))
    assert layer_measures(trace)[0]["trace/tokens_by_nodes"] == [0.5, 0.5]


def test_all_that_is_measured_is_defined():
    names = set(layer_measures(TRACE)[0]) | set(trace_agreement(TRACE, TRACE)[1][0])
    assert names == {name for name in DEFINITIONS if name.startswith("trace/")}


def test_agreement_is_of_the_rows_in_common():
    order = np.random.default_rng(1).permutation(40)[:30]
    renamed = np.roll(np.arange(8), 3)[TRACE.expert[:, order]].astype(np.int32)
    other = replace(TRACE, token=TRACE.token[order], domain=TRACE.domain[order], expert=renamed)
    other = replace(other, home=TRACE.home[order], weight=TRACE.weight[:, order])
    rows, layers = trace_agreement(TRACE, other)
    assert rows == 30 and [one["trace/matched_expert"] for one in layers] == [1.0, 1.0]
    assert max(one["trace/same_expert"] for one in layers) < 0.5


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (made_up_trace(layers=1), "the traces have layers 2 and 1"),
        (made_up_trace(top_k=1), "the traces have top_k 2 and 1"),
        (replace(TRACE, token=TRACE.token + 1), "the traces have 0 rows of text in common; expected at least 2"),
    ],
)
def test_traces_that_cannot_be_compared(written, capsys, other, problem):
    with pytest.raises(InputError, match=problem):
        trace_agreement(TRACE, other)
    assert main(written(a=TRACE, b=other)) == 2
    assert f"error: a.safetensors and b.safetensors: {problem}" in capsys.readouterr().err


def test_what_it_prints(written, capsys):
    assert main(written(a=TRACE, b=TRACE)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "a.safetensors: step 7, router switch, rows validation",
        "240 tokens in 40 rows, 2 sparse layers, 2 experts a token",
    ]
    assert "a.safetensors and b.safetensors: 40 rows in common" in lines
    assert lines[-2].split()[:3] == ["1", "100.0%", "100.0%"] and max(map(len, lines)) <= 79


def test_as_json(written, capsys):
    assert main([*written(a=TRACE, b=TRACE), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["traces"]) == {"a.safetensors", "b.safetensors"} and found["agreement"][0]["rows"] == 40
    assert found["traces"]["a.safetensors"]["layers"] == layer_measures(TRACE)


def test_one_domain_tells_nothing(written, capsys):
    alone = replace(TRACE, domain=np.zeros(40, np.int32), domains=("en",))
    assert main(written(a=alone)) == 0 and layer_measures(alone)[0]["trace/specialisation"] is None
    assert " - " in capsys.readouterr().out
