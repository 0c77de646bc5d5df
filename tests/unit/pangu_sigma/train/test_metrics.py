"""The log of a run's steps: what is in the file at any moment, and what comes of a disk that refuses."""

import errno
import json
import os

import numpy as np
import pytest

from pangu_sigma.errors import OutputNotWritten
from pangu_sigma.runtime.strict_json import dumps
from pangu_sigma.train.metrics import (
    HostCounters,
    MeasuredLayers,
    MetricsLog,
    Traffic,
    host_metrics,
    routing_metrics,
    validation_metrics,
    write_atomically,
)


def test_routing_of_two_layers_by_hand():
    """Loads 8, 4, 4, 0 and 4, 4, 4, 4; of the 8 tokens of two choices 2 and 8 have both on one node."""
    sums = {
        "assigned": np.array([[8.0, 4.0, 4.0, 0.0], [4.0, 4.0, 4.0, 4.0]]),
        "kept": np.array([12.0, 16.0]),
        "kept_local": np.array([6.0, 8.0]),
        "tokens_by_nodes": np.array([[2.0, 6.0], [8.0, 0.0]]),
    }
    found = routing_metrics(sums)
    assert (found["moe/max_violation"], found["moe/min_violation"]) == (0.5, 0.5)  # means of 1, 0 and of 1, 0
    assert found["moe/load_entropy"] == pytest.approx((0.75 + 1.0) / 2)  # 1.5 of 2 bits, and 2 of 2
    assert found["moe/tokens_by_nodes"] == [0.625, 0.375] and found["moe/nodes_per_token"] == 1.375
    assert found["moe/load_max_over_mean"] == found["moe/max_violation"] + 1.0
    del sums["tokens_by_nodes"]
    assert not {"moe/tokens_by_nodes", "moe/nodes_per_token"} & set(routing_metrics(sums))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_is_in_the_file_at_once_and_a_resumed_run_repeats_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write({"progress/step": step, "name": "中"})
        assert lines(path)[-1] == {"progress/step": step, "name": "中"}
    log.close()
    with open(path, "a") as file:
        file.write('{"progress/st')  # as a run leaves it that is killed while it writes
    again = MetricsLog(path, 2)
    assert [record["progress/step"] for record in lines(path)] == [1, 2]
    again.write({"progress/step": 3})
    again.close()
    assert (
        [record["progress/step"] for record in lines(path)]
        == [1, 2, 3]
        == [record["progress/step"] for record in again.records]
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    """/dev/full is a disk that is always full."""
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.close()
    log._file = open("/dev/full", "ab", buffering=0)
    with pytest.raises(OutputNotWritten, match=f"metrics.jsonl: cannot be written .{os.strerror(errno.ENOSPC)}"):
        log.write({"progress/step": 1})
    log.close()
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    )
    with pytest.raises(OutputNotWritten, match="summary.json: cannot be written .No space left"):
        write_atomically(tmp_path / "summary.json", "{}")
    assert not (tmp_path / "summary.json").exists()


def test_what_is_not_finite_is_null_also_in_lines_that_an_older_version_wrote(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"progress/step": 1, "loss/task": NaN, "time/step(s)": 1.0}\n{"progress/step": 2, "loss/task": Infinity}\n'
    )
    log = MetricsLog(path, 2)
    log.write({"progress/step": 3, "loss/task": float("nan"), "moe/tokens_per_expert": [[1.0, float("-inf")]]})
    log.close()
    found = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [record["loss/task"] for record in found] == [None] * 3
    assert found[2]["moe/tokens_per_expert"] == [[1.0, None]] == log.records[2]["moe/tokens_per_expert"]


def test_a_sum_over_ranks_that_is_no_number_gives_no_number():
    """The zeros, and the negative losses, of older versions came from int64 that wrapped."""
    for task, loss in ((float("nan"), None), (float("inf"), None), (1e30, 1e30 / 64)):
        found = validation_metrics({"task": np.float64(task), "tokens": np.float64(64.0)})
        assert found["valid/perplexity"] is None and json.loads(dumps(found))["valid/loss"] == loss
    assert validation_metrics({"task": np.float64(64.0), "tokens": np.float64(64.0)})["valid/perplexity"] == np.exp(1.0)


def test_the_pieces_of_a_step_add_up_to_it():
    """Two ranks of 1.0 and 0.8 s together: 0.5 s something travelled, 0.2 s of it beside computation, 0.1 s idle."""
    none = Traffic()
    found = host_metrics(HostCounters(1.8, Traffic(0.5, 0.1, 0.2, 30.0, 4.0), none, none, none), 2, 1.0, 512)
    names = ("compute", "communication", "idle", "overlapped")
    compute, communication, idle, overlapped = (found[f"time/{name}(s)"] for name in names)
    assert (communication, idle, overlapped) == (0.25, 0.05, 0.1) and compute == pytest.approx(0.7)
    assert compute + communication + idle - overlapped == pytest.approx(0.9)  # the mean of both
    assert (found["comm/intra_node(B)"], found["comm/inter_node(B)"]) == (30.0, 4.0)
    assert found["throughput/tokens_per_second"] == 512.0


def test_what_some_layers_have_is_a_mean_over_these():
    """Three layers of 8 assignments: the first has no locality loss, and the last counts no undecided tokens."""
    sums = {
        "tokens": np.float64(4.0),
        "locality": np.float64(4.0 * 0.6),
        "assigned": np.array([[8.0, 0.0], [4.0, 4.0], [6.0, 2.0]]),
        "kept": np.array([4.0, 8.0, 6.0]),
        "kept_local": np.array([1.0, 8.0, 3.0]),
        "undecided": np.array([2.0, 6.0, 0.0]),
    }
    found = routing_metrics(sums, None, MeasuredLayers((0.0, 0.1, 0.2), (True, True, False)))
    assert found["moe/undecided_fraction"] == 0.5
    assert found["moe/locality_divergence"] == pytest.approx(2.0)  # 0.6 = 0.1 x 2 + 0.2 x 2
    assert found["moe/drop_fraction_by_layer"] == [0.5, 0.0, 0.25] and found["moe/drop_fraction"] == 0.25
    assert found["moe/load_max_over_mean_by_layer"] == [2.0, 1.0, 1.5]
    assert found["moe/local_fraction_by_layer"] == [0.25, 1.0, 0.5]
    scheduled = routing_metrics(sums, 0.3, MeasuredLayers((0.0, 0.1, 0.2), (True,) * 3))
    assert scheduled["moe/locality_divergence"] == pytest.approx(1.0)  # of two layers with mu 0.3
    assert "moe/locality_divergence" not in routing_metrics(sums, 0.0, None)


@pytest.mark.parametrize(
    ("counted", "expected"), [({}, (30 + 20) / 40 / 2), ({"copies": [16, 12]}, (16 + 12) / 40 / 2)]
)
def test_copies_between_nodes_are_means_over_tokens_and_layers(counted, expected):
    """40 tokens, two layers; without a dispatcher that counts copies each assignment away from home is one."""
    numbers = {"kept": [70, 80], "kept_local": [40, 60], **counted}
    sums = {"assigned": np.full((2, 4), 20.0), **{name: np.array(values, float) for name, values in numbers.items()}}
    assert routing_metrics(sums, tokens=40)["moe/copies_between_nodes"] == pytest.approx(expected)
