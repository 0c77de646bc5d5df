"""How gradients are summed: keys that have no effect, or ask for what cannot be had, are refused with the reason."""

import pytest

from helpers.jobs import make_config
from locmoe_ops.errors import InputError
from pangu_sigma.config.ascend import overlap_bucket
from pangu_sigma.config.chips import CHIPS
from pangu_sigma.config.validate import validate

__all__ = ["make_config"]

FP16, NARROW = {"precision": "fp16"}, {"reduce_precision": "fp16"}
ON_ASCEND = {**FP16, "device": "ascend", "fused": {"accumulate": True}}
SEVERAL = {"micro_batch_size": 1}


@pytest.mark.parametrize(
    ("ranks", "sections", "fragment"),
    [
        (
            2,
            {"parallel": NARROW},
            "reduce_precision is fp16 with runtime.precision fp32, in which gradients are made; ",
        ),
        (
            2,
            {"parallel": {"reduce_precision": "bf16"}, "runtime": FP16},
            "reduce_precision is bf16 with runtime.precision fp16, in which gradients are made; expected fp32 or fp16",
        ),
        (1, {"parallel": NARROW, "runtime": FP16}, "one data-parallel rank, which sums with nobody; expected fp32"),
        (
            2,
            {"parallel": {**NARROW, "tensor": 2}, "runtime": FP16},
            "one data-parallel rank, which sums with nobody; expected fp32",
        ),
        (
            2,
            {"parallel": {**NARROW, "expert": 2, "all_to_all": "gathered"}, "runtime": FP16},
            "reduce_precision is fp16 with parallel.all_to_all gathered",
        ),
        (2, {"parallel": {"bucket_mb": 8, "overlap_gradients": False}}, "bucket_mb is 8.0 with parallel.overlap_grad"),
        (1, {"parallel": {"bucket_mb": 8}}, "bucket_mb is 8.0 with one data-parallel rank"),
        (
            2,
            {"optimizer": {"flat": False, "zero": "data_parallel"}},
            "optimizer.flat is false with optimizer.zero data_parallel, where each rank's part of all parameters is",
        ),
        (
            2,
            {"runtime": {**ON_ASCEND, "precision": "fp32"}},
            "accumulate is true with runtime.precision fp32, which the",
        ),
        (
            2,
            {"runtime": ON_ASCEND},
            "accumulate is true in a step of one micro-batch (train.global_batch_size 8, 2 data",
        ),
        (
            2,
            {"runtime": {**ON_ASCEND, "mode": "pynative"}, "train": SEVERAL},
            "accumulate is true with runtime.mode pyn",
        ),
        (
            2,
            {"runtime": {**ON_ASCEND, "jit_level": "O2"}, "train": SEVERAL},
            "accumulate is true with runtime.jit_level",
        ),
    ],
)
def test_what_is_refused(make_config, ranks, sections, fragment):
    with pytest.raises(InputError) as caught:
        validate(make_config(**sections), ranks)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "sections"),
    [
        (2, {"parallel": NARROW, "runtime": FP16}),
        (4, {"parallel": {**NARROW, "tensor": 2}, "runtime": FP16}),
        (2, {"parallel": {"reduce_precision": "bf16"}, "runtime": {"precision": "bf16", "device": "ascend"}}),
        (2, {"parallel": {"bucket_mb": 8}}),
        (2, {"runtime": ON_ASCEND, "train": SEVERAL}),
    ],
)
def test_what_is_taken(make_config, ranks, sections):
    validate(make_config(**sections), ranks)


@pytest.mark.parametrize(
    ("sections", "megabytes"),
    [
        ({"runtime": {"device": "cpu"}}, 0.5),
        ({"runtime": {"device": "ascend"}}, 32),
        ({"runtime": {"device": "ascend", "chip": "910a"}}, 32),
        ({"runtime": {"device": "cpu"}, "parallel": {"bucket_mb": 2}}, 2),
        ({"runtime": {"device": "ascend"}, "parallel": {"bucket_mb": 64}}, 64),
    ],
)
def test_buckets_by_backend_unless_given(make_config, sections, megabytes):
    assert overlap_bucket(make_config(**sections)) == megabytes * 2**20 / 4


def test_buckets_of_every_chip_fill_a_link():
    assert all(chip.bucket_mb.value >= 32 for chip in CHIPS.values())
