"""Whole runs of `pangu-sigma train` in one process: files, resume, precision, modes."""

import json
import math

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from pangu_sigma.cli import main

METRICS = {"loss/total", "loss/task", "loss/aux", "loss/locality", "optim/learning_rate", "optim/grad_norm", "optim/loss_scale",
           "optim/skipped_steps", "time/step(s)", "time/compute(s)", "time/communication(s)", "time/overlapped(s)", "time/idle(s)",
           "comm/intra_node(B)", "comm/inter_node(B)", "moe/local_fraction", "moe/drop_fraction", "moe/load_max_over_mean",
           "moe/tokens_per_expert", "throughput/tokens_per_second", "progress/step", "progress/epoch"}


@pytest.fixture(scope="module")
def train(tiny_data, tmp_path_factory):
    """Runs the command with overrides in a folder of its own (or a given one); returns the folder."""
    config = {"model": {"hidden_size": 16, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32,
                        "hidden_dropout": 0.1},
              "moe": {"num_experts": 4, "num_groups": 2, "router": {"type": "switch", "switch": {"jitter": 0.1}}},
              "data": {"path": str(tiny_data)}, "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
              "train": {"steps": 6, "global_batch_size": 4, "eval_rows": 8, "log_interval": 2}}
    root = tmp_path_factory.mktemp("runs")
    (root / "config.yaml").write_text(yaml.safe_dump(config))

    def run(name, *overrides):
        folder = root / name
        words = [word for override in overrides for word in ("--set", override)]
        assert main(["train", str(root / "config.yaml"), "--set", f"train.output_dir={folder}", *words]) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def straight(train):
    return train("straight", "checkpoint.interval=3", "train.eval_interval=4")


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
    assert summary["valid/perplexity"] == pytest.approx(math.exp(summary["valid/loss"]))
    assert yaml.safe_load((straight / "config.yaml").read_text())["moe"]["router"]["type"] == "switch"


def test_metrics_add_up(straight):
    for record in records(straight):
        assert record["loss/total"] == pytest.approx(record["loss/task"] + record["loss/aux"] + record["loss/locality"])
        assigned = np.array(record["moe/tokens_per_expert"])
        assert assigned.sum() == 4 * 32  # rows x positions, one sparse layer, one choice
        assert record["moe/load_max_over_mean"] == pytest.approx(assigned.max() / assigned.mean())
        assert record["moe/local_fraction"] == 1.0 and record["comm/inter_node(B)"] == 0  # one process is one node
        parts = record["time/compute(s)"] + record["time/communication(s)"] + record["time/idle(s)"] - record["time/overlapped(s)"]
        assert parts == pytest.approx(record["time/step(s)"], abs=1e-5)  # times travel as whole microseconds


def test_resumed_run_is_the_same_run_to_the_bit(train, straight):
    """Dropout and jitter are on, so that random numbers are part of the trajectory."""
    train("parts", "checkpoint.interval=3", "train.eval_interval=4", "train.stop_after=3")
    parts = train("parts", "checkpoint.interval=3", "train.eval_interval=4", "checkpoint.resume=auto")
    assert losses(parts) == losses(straight)
    left, right = tensors(parts / "checkpoints" / "step_6"), tensors(straight / "checkpoints" / "step_6")
    assert set(left) == set(right) and any(name.startswith("adam_m") for name in left)
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_accumulation_and_pynative_are_the_same_function(train):
    """One micro-batch of 4 rows in a graph, two of 2 rows in a graph, one of 4 step by step: losses over 3 steps.

    Statistics of the balancing loss are those of a micro-batch: its weight is 0 here, and slots are enough for all.
    """
    same = ("train.stop_after=3", "moe.router.switch.aux_loss_weight=0", "moe.router.switch.jitter=0", "moe.capacity.factor=4")
    whole = losses(train("whole", *same))
    # fp32 sums in another order: 1e-7 relative, and three steps of Adam behind them
    assert losses(train("halves", *same, "train.micro_batch_size=2")) == pytest.approx(whole, rel=1e-5)
    assert losses(train("eager", *same, "runtime.mode=pynative")) == pytest.approx(whole, rel=1e-5)


def test_half_precision_scales_its_loss(train):
    """A scale that overflows at first comes down, those steps are skipped and counted, then training goes on."""
    found = records(train("half", "runtime.precision=fp16", "runtime.loss_scale.initial=1e12", "train.steps=30",
                          "train.eval_rows=0"))
    assert found[0]["optim/grad_norm"] is None and found[0]["optim/skipped_steps"] == 1
    scales = [record["optim/loss_scale"] for record in found]
    assert scales[1] == scales[0] / 2
    skipped = found[-1]["optim/skipped_steps"]
    assert 0 < skipped < 28 and found[-1]["loss/task"] < found[0]["loss/task"]


LOCAL = ("moe.router.type=locmoe", "moe.layout={world_size: 2, ranks_per_node: 1, expert: 2}", "moe.router.balance_rate=0.01",
         "moe.router.local_term={kind: margin, strength: 1.0, start_step: 2, warmup_steps: 2}")


def test_local_term_follows_its_schedule_and_is_off_in_a_second_validation(train, capsys):
    """Two nodes with one expert of each group: at full strength no token leaves its own. `eval` finds what the run measured."""
    folder = train("local", *LOCAL, "train.eval_interval=2")
    found = records(folder)
    assert [record["moe/local_strength"] for record in found] == [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    assert 0.0 < found[0]["moe/local_fraction"] < 1.0 and found[-1]["moe/local_fraction"] == 1.0
    assert found[1]["valid/local_term_off/loss"] == found[1]["valid/loss"]  # strength 0 is off
    assert found[5]["valid/local_term_off/loss"] != found[5]["valid/loss"]
    capsys.readouterr()
    assert main(["eval", str(folder / "config.yaml"), "--set", "checkpoint.resume=auto"]) == 0
    words = capsys.readouterr().out.split()
    shown = [float(words[i + 1]) for i, word in enumerate(words) if word == "perplexity"]
    assert shown == pytest.approx([found[5]["valid/perplexity"], found[5]["valid/local_term_off/perplexity"]], abs=0.006)  # two decimals


def test_balance_biases_are_part_of_what_a_checkpoint_holds(train):
    whole = train("balanced", *LOCAL)
    train("balanced parts", *LOCAL, "train.stop_after=3", "checkpoint.interval=3")
    parts = train("balanced parts", *LOCAL, "checkpoint.resume=auto", "checkpoint.interval=3")
    assert losses(parts) == losses(whole)
    bias = next(value for name, value in tensors(parts / "checkpoints" / "step_6").items() if name.endswith("balance_bias"))
    assert bias.any()
