"""Differences between checkpoints, down to one element, and none where only files differ."""

from dataclasses import replace

import numpy as np
import pytest

from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.checkpoint.format import CheckpointHeader, DataState
from pangu_sigma.checkpoint.parts import LocalTensor
from pangu_sigma.checkpoint.surgery.difference import diff
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.cli.main import main

HEADER = CheckpointHeader(
    3,
    "training",
    {"model": {"hidden_size": 4}, "moe": {"router": {"type": "hash"}}},
    DataState("ab", 4, ("en",)),
    {"next_step": 3},
    {"next_step": 3},
    {"loss_scale.scale": 4.0},
)
A, B = np.arange(8, dtype=np.float32).reshape(4, 2), np.zeros(3, np.int32)


@pytest.fixture
def save(tmp_path):
    def run(name, pieces, **changed):
        header = replace(HEADER, **changed)
        with CheckpointWriter(tmp_path / name, WritingJob(0, (0,), 5.0, lambda: None), Retention()) as writer:
            writer.save(header, pieces)
        return str(tmp_path / name / f"step_{header.step}")

    return run


def whole(name, array):
    return LocalTensor(name, array, None, "x.safetensors")


def test_other_files_are_no_difference(save, capsys):
    halves = [LocalTensor("a", A[2 * i : 2 * i + 2], ShardSpec(0, i, 2), f"{i}.safetensors") for i in (0, 1)]
    assert diff(save("one", [whole("a", A), whole("b", B)]), save("two", [*halves, whole("b", B)])) == 0
    assert capsys.readouterr().out == "no difference: 2 tensors, step 3\n"


def test_every_kind_of_difference_has_its_line(save, capsys):
    other = A.copy()
    other[1, 1] += 0.5
    config = {"model": {"hidden_size": 4}, "moe": {"router": {"type": "switch"}, "num_groups": 2}}
    left = save("one", [whole("a", A), whole("b", B), whole("c", B), whole("d", B)])
    right = save(
        "two",
        [whole("a", other), whole("b", B), whole("c", B[:2]), whole("e", B)],
        step=4,
        config=config,
        scalars={"loss_scale.scale": 8.0},
    )
    assert main(["ckpt", "diff", left, right]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "step: 3 | 4",
        "config moe.num_groups: absent | 2",
        "config moe.router.type: hash | switch",
        "numbers loss_scale.scale: 4.0 | 8.0",
        "a: 1 of 8 elements differ, by up to 0.5",
        "c: I32 [3] | I32 [2]",
        f"d: only in {left}",
        f"e: only in {right}",
    ]
