"""What checkpoints promise, through whole runs in one process: exact resumption, whole or passed over, weights for
other runs.
"""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from pangu_sigma.checkpoint import parts as parts_of_checkpoints
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.cli.main import main
from pangu_sigma.data.dataset import PreparedData


@pytest.fixture(scope="module")
def straight(train):
    return train("straight", "checkpoint.interval=3", "train.eval_rows=0")


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [record["loss/total"] for record in records(folder)]


EXACT = {
    "locmoe": ("moe.router.type=locmoe", "moe.router.balance_rate=0.01"),
    "switch in half precision": ("runtime.precision=fp16", "runtime.loss_scale={initial: 1e8, growth_interval: 7}"),
}


@pytest.mark.parametrize("case", EXACT)
def test_forty_steps_are_twenty_and_twenty(train, case):
    """Losses, weights, moments and counters, to the bit. In half precision the loss scale falls and rises on the
    way.
    """
    options = (*EXACT[case], "train.steps=40", "train.eval_rows=0", "checkpoint.interval=20")
    whole = train(f"{case} whole", *options)
    half = whole / "checkpoints" / "step_20"
    resumed = train(f"{case} resumed", *options, f"checkpoint.resume={half}")
    assert losses(resumed) == losses(whole)[20:]
    scales, again = ([record.get("optim/loss_scale") for record in records(run)] for run in (whole, resumed))
    assert scales[20:] == again and (len(set(again)) > 1 if "half" in case else set(again) == {None})
    left, right = (CheckpointReader.open(folder / "checkpoints" / "step_40") for folder in (whole, resumed))
    with left, right:
        assert left.header.scalars == right.header.scalars and left.header.scalars["optimizer.updates"] > 20
        for name in left.names():
            np.testing.assert_array_equal(left.read(name), right.read(name), err_msg=name)


def test_a_run_that_is_told_to_stop_leaves_a_checkpoint_of_the_step_it_was_in(train, straight, capfd):
    """And, taken up again, is the run that was never stopped."""
    folder = train.root / "stopped"

    def tell():
        end = time.monotonic() + 120
        while time.monotonic() < end and not (folder / "metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    teller = threading.Thread(target=tell)
    teller.start()
    train("stopped", "train.eval_rows=0")  # and no checkpoint.interval
    teller.join()
    assert signal.getsignal(signal.SIGTERM) is before
    steps = len(losses(folder))
    assert 1 <= steps < 6 and f"stopped after step {steps}, as requested" in capfd.readouterr().out
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{steps}"]
    assert main(["ckpt", "verify", str(folder / "checkpoints" / f"step_{steps}")]) == 0
    assert not (folder / "summary.json").exists()
    train("stopped", "train.eval_rows=0", "checkpoint.resume=auto")
    assert losses(folder) == losses(straight) and (folder / "summary.json").exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(train, straight, capfd):
    """The newest is damaged: the run resumes from the one before, and is the same run in the end."""
    options = ("checkpoint.interval=2", "train.eval_rows=0", "checkpoint.keep_last=9")
    folder = train("damaged", *options, "train.stop_after=5")
    flip(folder / "checkpoints" / "step_4" / "dense_0.safetensors")
    capfd.readouterr()
    train("damaged", *options, "checkpoint.resume=auto")
    shown = capfd.readouterr()
    assert "step_4/dense_0.safetensors: tensor" in shown.err and "trying the checkpoint before it" in shown.err
    assert shown.err.count("warning") == 1 and f"resuming from {folder / 'checkpoints' / 'step_2'}" in shown.out
    assert losses(folder) == losses(straight)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step_2",
        "step_4",
        "step_4.aside",
        "step_6",
    ]


def test_no_whole_checkpoint_is_an_error_and_not_a_new_run(train, capfd):
    folder = train("all damaged", "train.steps=2", "train.eval_rows=0")
    flip(folder / "checkpoints" / "step_2" / "experts_0_0.safetensors")
    capfd.readouterr()
    assert main(["train", str(folder / "config.yaml"), "--set", "checkpoint.resume=auto"]) == 2
    assert "checkpoint.resume: none of the 1 checkpoints in" in capfd.readouterr().err
    assert [record["progress/step"] for record in records(folder)] == [1, 2]


def test_a_disk_that_refuses_ends_the_job_at_the_next_step(train, tmp_path, capfd, monkeypatch):
    """One line, status 1, and the checkpoint before is whole."""
    folder, real = tmp_path / "full", parts_of_checkpoints.write_shard

    def write(path, tensors):
        if "step_2" in str(path):
            raise OSError(28, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(parts_of_checkpoints, "write_shard", write)
    config = train.root / "config.yaml"
    overrides = [f"train.output_dir={folder}", "checkpoint.interval=1", "train.steps=500", "train.eval_rows=0"]
    assert main(["train", str(config), *(word for override in overrides for word in ("--set", override))]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert lines == [
        f"pangu-sigma: error: checkpoint {folder}/checkpoints/step_2.part: cannot be written (No space left on "
        "device); "
        "expected a folder on a disk with room for it"
    ]
    assert records(folder)[-1]["progress/step"] in (2, 3)
    with CheckpointReader.open(folder / "checkpoints" / "step_1") as reader:
        assert len(list(reader.verify())) > 20


def test_initial_weights_begin_a_run_of_its_own(train, straight):
    """Weights as the other run left them (a step of no size leaves them there); optimizer, steps and sampler begin
    anew.
    """
    source = straight / "checkpoints" / "step_6"
    folder = train(
        "second life",
        f"checkpoint.initial={source}",
        "optimizer.learning_rate=1e-30",
        "optimizer.end_learning_rate=0",
        "train.steps=2",
        "train.eval_rows=0",
        "checkpoint.resume=auto",
    )
    assert [record["progress/step"] for record in records(folder)] == [1, 2]
    with CheckpointReader.open(folder / "checkpoints" / "step_2") as now, CheckpointReader.open(source) as then:
        assert now.header.scalars["optimizer.updates"] == 2.0
        for name in then.names():
            if not name.startswith("adam"):
                np.testing.assert_array_equal(now.read(name), then.read(name), err_msg=name)
    assert losses(folder)[0] < losses(straight)[0]


def test_a_summary_tells_what_checkpoints_cost(straight):
    summary = json.loads((straight / "summary.json").read_text())
    assert 0.0 < summary["time/checkpoint_stall(s)"] and 0.0 < summary["time/checkpoint_writing(s)"]


def test_a_model_of_one_domain_is_evaluated_on_its_own(train, tiny_data, tmp_path, capsys):
    """The way the README shows: extract, prepare the domain's text with the model's tokenizer, evaluate; then train
    on.
    """
    folder = train(
        "two domains", "model.domain_embeddings=true", "moe.capacity.evaluation_factor=8", "train.eval_rows=64"
    )
    target = tmp_path / "part"
    assert main(["ckpt", "extract", str(folder), str(target), "--domain", "two", "--optimizer"]) == 0
    config = str(target / "config.yaml")
    changes = [
        f"data.path={tmp_path / 'data-two'}",
        f"data.prepare.sources={{two: {tiny_data.parent / 'two'}}}",
        "data.prepare.validation_fraction=0.1",
        "data.prepare.vocab_size=320",
        f"train.output_dir={tmp_path / 'run'}",
    ]
    words = [word for change in changes for word in ("--set", change)]
    assert main(["prepare", config, *words]) == 0
    capsys.readouterr()
    assert main(["eval", config, *words, "--set", f"checkpoint.resume={target}"]) == 0
    shown = capsys.readouterr().out
    assert f"{target}: step 6" in shown
    perplexity = float(shown.split("perplexity")[1].split()[0])
    guessing = PreparedData.open(tmp_path / "data-two").vocab_size
    assert (
        perplexity < 0.8 * guessing
    )  # six steps teach little, but with rows of the wrong words it would be above that
    assert (
        main(
            [
                "train",
                config,
                *words,
                "--set",
                f"checkpoint.resume={target}",
                "--set",
                "checkpoint.initial=null",
                "--set",
                "train.steps=8",
                "--set",
                "train.eval_rows=0",
            ]
        )
        == 0
    )
    assert [record["progress/step"] for record in records(tmp_path / "run")] == [7, 8]
