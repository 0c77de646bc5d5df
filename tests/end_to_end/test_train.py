"""Whole runs of `pangu-sigma train` in one process: files, resume, precision, modes."""

import json
import math
import time
from contextlib import closing

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.state import read_values, set_values
from pangu_sigma.cli.main import main
from pangu_sigma.config.load import load_config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.data.vocabulary import vocabulary
from pangu_sigma.metrics.definitions import DEFINITIONS
from pangu_sigma.runtime.compile_cache.folder import VARIABLE
from pangu_sigma.runtime.environment import launches
from pangu_sigma.runtime.runtime import start_runtime
from pangu_sigma.runtime.versions import code_version
from pangu_sigma.train.engine import TrainEngine

# Of one process, router switch, fp32: nothing travels, one node is home, no loss scale, no locality loss.
METRICS = {
    "loss/total",
    "loss/task",
    "loss/aux",
    "optim/learning_rate",
    "optim/grad_norm",
    "optim/skipped_steps",
    "time/step(s)",
    "time/unix",
    "moe/drop_fraction",
    "moe/load_max_over_mean",
    "moe/max_violation",
    "moe/min_violation",
    "moe/load_entropy",
    "moe/tokens_per_expert",
    "throughput/tokens_per_second",
    "progress/step",
    "progress/epoch",
    "progress/tokens",
    "memory/peak(B)",
    "memory/process_peak(B)",
}


@pytest.fixture(scope="module")
def straight(train):
    return train(
        "straight", "checkpoint.interval=3", "train.eval_interval=4", "train.cosines=true", "train.tensorboard=true"
    )


def records(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {name for record in found for name in record} <= set(DEFINITIONS)
    return found


def losses(folder):
    return [record["loss/total"] for record in records(folder)]


def tensors(checkpoint):
    return {name: value for path in sorted(checkpoint.glob("*.safetensors")) for name, value in load_file(path).items()}


def test_a_run_leaves_what_it_should(straight):
    found = records(straight)
    assert [record["progress/step"] for record in found] == [1, 2, 3, 4, 5, 6]
    assert all(set(record) - {"valid/loss", "valid/perplexity"} == METRICS for record in found)
    assert [record["progress/step"] for record in found if "valid/loss" in record] == [4, 6]
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["step_3", "step_6"]
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["code"] == code_version() and summary["status"] == "finished"
    assert summary["valid/perplexity"] == pytest.approx(math.exp(summary["valid/loss"]))
    assert set(summary) - {"valid/loss", "valid/perplexity"} >= METRICS and set(summary) <= set(DEFINITIONS)
    (events,) = (straight / "tensorboard").iterdir()
    assert b"moe/tokens_per_expert/layer_0" in events.read_bytes() and b"cosines/token_gate" in events.read_bytes()
    assert b"configuration/text_summary" in events.read_bytes()
    assert yaml.safe_load((straight / "config.yaml").read_text())["moe"]["router"]["type"] == "switch"
    (launch,) = launches(straight / "environment.json")
    assert (launch["ranks"], launch["device"], launch["code"]) == (1, "cpu", code_version())
    assert launch["unix"] <= found[0]["time/unix"] < found[-1]["time/unix"] <= time.time()
    assert summary["time/unix"] == found[-1]["time/unix"]
    assert [record["progress/tokens"] for record in found] == [128 * step for step in range(1, 7)]  # 4 rows of 32


def test_metrics_add_up(straight):
    for record in records(straight):
        assert record["loss/total"] == pytest.approx(record["loss/task"] + record["loss/aux"])
        assigned = np.array(record["moe/tokens_per_expert"])
        assert assigned.sum() == 4 * 32  # rows x positions, one sparse layer, one choice
        assert record["moe/load_max_over_mean"] == pytest.approx(assigned.max() / assigned.mean())
        assert record["moe/max_violation"] == pytest.approx(assigned.max() / assigned.mean() - 1.0)
        assert record["moe/min_violation"] == pytest.approx(1.0 - assigned.min() / assigned.mean())


def test_cosines_are_those_of_the_last_batch(straight, tiny_data):
    """Hidden states exported from the last checkpoint, and loops over them."""
    config = load_config(str(straight / "config.yaml"))
    data, runtime = PreparedData.open(str(tiny_data)), start_runtime(config)
    parts = TrainEngine(config, runtime, vocabulary(config, data))
    with CheckpointReader.open(straight / "checkpoints" / "step_6") as reader:
        set_values(read_values(reader, parts.state(), (0, 1, 2, 3)))
    with closing(create_loader(config, data, runtime.topology, 0, 1)) as loader:
        (layer,) = parts.routed_tokens(loader.step(5)[0])
    found = json.loads((straight / "cosines.json").read_text())
    unit = layer.x.astype(np.float64) / np.linalg.norm(layer.x.astype(np.float64), axis=1, keepdims=True)
    gate = parts.network.blocks[0].feed_forward.routing.router.gate.weight.asnumpy().astype(np.float64)
    gate /= np.linalg.norm(gate, axis=1, keepdims=True)
    own = np.array([token @ gate[expert] for token, expert in zip(unit, layer.expert[:, 0])]).reshape(4, 32)
    assert found["delta"]["maximum"] == [pytest.approx(own.max(1).mean(), abs=1e-6)]
    assert found["delta"]["minimum"] == [pytest.approx(max(own.min(1).mean(), 0.0), abs=1e-6)]
    square = own.max(1).mean() ** 2
    assert found["bound"]["exp"]["maximum"] == [pytest.approx(math.exp(16 * square / (2 - square)) / 2, rel=1e-4)]
    pairs = [(unit[i] @ unit[j], layer.expert[i, 0] == layer.expert[j, 0]) for i in range(128) for j in range(i)]
    groups = layer.expert[:, 0] // 2
    table = {
        "token_token_within": [value for value, same in pairs if same],
        "token_token_across": [value for value, same in pairs if not same],
        "token_gate": [token @ row for token, group in zip(unit, groups) for row in gate[2 * group : 2 * group + 2]],
    }
    for name, values in table.items():
        assert sum(found[name]["counts"]) == len(values)
        centres = np.convolve(found[name]["edges"], [0.5, 0.5], "valid")
        # A value counts as its bin's centre: off by half a hundredth at most, and less on average.
        assert centres @ found[name]["counts"] / len(values) == pytest.approx(np.mean(values), abs=2e-3)


def test_a_run_cut_off_leaves_no_cosines(train):
    folder = train("no cosines", "train.stop_after=1", "train.cosines=true", "train.eval_rows=0")
    assert not (folder / "cosines.json").exists()


def test_critical_capacity_is_kept_over_a_resume(train):
    options = ("moe.capacity.mode=critical", "checkpoint.interval=3", "train.eval_rows=0")
    train("critical", *options, "train.stop_after=3")
    folder = train("critical", *options, "checkpoint.resume=auto")
    found = records(folder)
    assert [one["resumed_after_step"] for one in launches(folder / "environment.json")] == [0, 3]
    slots = found[0]["moe/capacity_slots"]
    assert slots % 4 == 0 and 4 <= slots <= 128  # as many for each of four sequences
    for record in found:
        # 128 tokens over four experts of two groups
        assert (record["moe/capacity_slots"], record["moe/capacity_factor"], record["moe/graphs"]) == (
            slots,
            slots / 32,
            1,
        )
        assigned = np.array(record["moe/tokens_per_expert"])
        assert record["moe/drop_fraction"] == pytest.approx(1 - np.minimum(assigned, slots).sum() / 128)


def test_adaptive_capacity_changes_graphs_and_survives_a_resume(train):
    """Two micro-batches of two sequences a step; measured before steps 1 and 4; almost any number of slots is a
    bucket.
    """
    options = (
        "moe.capacity.mode=adaptive",
        "moe.capacity.interval=3",
        "moe.capacity.buckets=32",
        "moe.capacity.hysteresis=0",
        "optimizer.learning_rate=0.05",
        "train.micro_batch_size=2",
        "checkpoint.interval=2",
        "checkpoint.keep_last=3",
        "train.eval_rows=0",
    )
    folder = train("adaptive", *options)
    whole = records(folder)
    slots = [record["moe/capacity_slots"] for record in whole]
    assert slots[0] == slots[1] == slots[2] != slots[3] == slots[4] == slots[5]
    assert [record["moe/graphs"] for record in whole] == [1, 1, 1, 2, 2, 2]
    resumed = records(train("adaptive resumed", *options, f"checkpoint.resume={folder / 'checkpoints' / 'step_2'}"))
    for name in (
        "progress/step",
        "moe/capacity_slots",
        "moe/capacity_factor",
        "moe/graphs",
        "loss/total",
        "moe/drop_fraction",
    ):
        assert [record[name] for record in resumed] == [record[name] for record in whole[2:]], name


def test_accumulation_is_the_same_function(train):
    """One micro-batch of 4 rows, and two of 2 rows: losses over 3 steps. (PyNative mode: tests/distributed/test_modes.)

    Statistics of the balancing loss are those of a micro-batch: its weight is 0 here, and slots are enough for all.
    """
    same = (
        "train.stop_after=3",
        "train.eval_rows=0",
        "moe.router.switch.aux_loss_weight=0",
        "moe.router.switch.jitter=0",
        "moe.capacity.factor=4",
    )
    whole = losses(train("whole", *same))
    # fp32 sums in another order: 1e-7 relative, and three steps of Adam behind them
    assert losses(train("halves", *same, "train.micro_batch_size=2")) == pytest.approx(whole, rel=1e-5)


def test_half_precision_scales_its_loss(train):
    """A scale that overflows at first comes down, those steps are skipped and counted, then training continues."""
    found = records(
        train(
            "half", "runtime.precision=fp16", "runtime.loss_scale.initial=1e12", "train.steps=30", "train.eval_rows=0"
        )
    )
    assert found[0]["optim/grad_norm"] is None and found[0]["optim/skipped_steps"] == 1
    scales = [record["optim/loss_scale"] for record in found]
    assert scales[1] == scales[0] / 2
    skipped = found[-1]["optim/skipped_steps"]
    assert 0 < skipped < 28 and found[-1]["loss/task"] < found[0]["loss/task"]


LOCAL = (
    "moe.router.type=locmoe",
    "moe.logical_topology={world_size: 2, ranks_per_node: 1, expert: 2}",
    "moe.router.balance_rate=0.01",
    "moe.router.locality_bias={kind: margin, strength: 1.0, start_step: 2, warmup_steps: 2}",
)


def test_local_term_follows_its_schedule_and_is_off_in_a_second_validation(train, capsys):
    """Two nodes with one expert of each group: at full strength no token leaves its own. `eval` finds what the run
    measured.
    """
    folder = train("local", *LOCAL, "train.eval_interval=2")
    found = records(folder)
    assert [record["moe/local_strength"] for record in found] == [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    assert 0.0 < found[0]["moe/local_fraction"] < 1.0 and found[-1]["moe/local_fraction"] == 1.0
    assert found[1]["valid/local_term_off/loss"] == found[1]["valid/loss"]  # strength 0 is off
    assert found[5]["valid/local_term_off/loss"] != found[5]["valid/loss"]
    capsys.readouterr()
    assert main(["eval", str(folder / "config.yaml"), "--set", "checkpoint.resume=auto", "--as-trained", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["results"]
    both = [shown[name]["all"]["perplexity"]["value"] for name in ("validation", "validation-no-local")]
    # The same graph but for its outputs, in float32
    assert both == pytest.approx([found[5]["valid/perplexity"], found[5]["valid/local_term_off/perplexity"]], rel=1e-6)
    without_rules = []
    for options in (["--set", "moe.evaluation_rules=none", "--as-trained"], []):
        assert main(["eval", str(folder / "config.yaml"), "--set", "checkpoint.resume=auto", "--json", *options]) == 0
        shown = json.loads(capsys.readouterr().out)["results"]
        without_rules.append(shown["validation"]["all"]["perplexity"]["value"])
        assert "validation-no-local" not in shown or not options
    # On two nodes with the rules off, and where there is one node: sums of a batch of another number of rows
    assert without_rules[0] == pytest.approx(without_rules[1], rel=1e-6)


def test_the_routers_own_state_is_resumed_and_schedules_follow_from_the_step(train):
    """A checkpoint holds balance biases, what moves them, and means of gate values. It does not hold mu, which follows
    from the step. One process plays two nodes, whose far tier follows what is measured.
    """
    options = (
        *(option for option in LOCAL if "balance_rate" not in option),
        "moe.router.balance={kind: pid, rate: 0.01, proportional: 0.02, derivative: 0.02}",
        "moe.router.locmoe.centre_rate=0.5",
        "moe.router.locmoe.locality_loss_weight=0.2",
        "moe.router.locality_loss={initial_weight: 1.0, start_step: 1, warmup_steps: 4}",
        "moe.dispatch.type=hierarchical",
        "moe.capacity.measured_share={interval: 2}",
        "train.eval_rows=0",
    )
    whole = train("balanced", *options)
    train("balanced parts", *options, "train.stop_after=3", "checkpoint.interval=3")
    parts = train("balanced parts", *options, "checkpoint.resume=auto", "checkpoint.interval=3")
    assert losses(parts) == losses(whole)
    held = tensors(parts / "checkpoints" / "step_6")
    for state in ("balance_bias", "balance_integral", "value_mean"):
        assert next(value for name, value in held.items() if name.endswith(state)).any()
    # with every token at home each expert has as many: the last error is 0
    assert any(name.endswith("balance_error") for name in held)
    assert not [name for name in held if name.endswith("locality_loss_weight")]
    found = records(parts)
    for name in ("moe/local_share", "moe/measured_local_share"):
        shares = [record[name] for record in found]
        assert shares == [record[name] for record in records(whole)]
        # measured before steps 1, 3 and 5; from step 5 on the local term keeps every token at home
        assert shares[0] == shares[1] < 1.0 and shares[4:] == [1.0, 1.0]
    mu = [record["moe/locality_loss_weight"] for record in found]
    assert mu == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    for record, weight in zip(found, mu):
        layers = len(record["moe/local_fraction_by_layer"])
        divergence = record["loss/locality"] / weight / layers
        # the weight is a float32 in the graph
        assert record["moe/locality_divergence"] == pytest.approx(divergence, rel=1e-6) and divergence > 0
        # a layer's is a quotient in float32
        assert min(record["moe/local_fraction_by_layer"]) <= record["moe/local_fraction"] + 1e-7


def test_no_graph_is_taken_from_a_compile_cache(train, tmp_path, monkeypatch, capfd):
    """MindSpore would find this run's graphs again for any other configuration, and compute this one's numbers."""
    monkeypatch.setenv(VARIABLE, "none")
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "1")
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", str(tmp_path))
    train("cached", "train.steps=1", "optimizer.warmup_steps=1", "train.eval_rows=0")
    assert list(tmp_path.iterdir()) == []
    assert "MS_COMPILER_CACHE_ENABLE is 1, but MindSpore's compile cache is switched off" in capfd.readouterr().err
