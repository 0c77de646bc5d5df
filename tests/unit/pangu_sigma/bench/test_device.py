"""A device that computes wrongly is found; on this CPU all that can be tried passes."""

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from pangu_sigma.bench.device import (
    check_device,
    check_fused,
    check_overflow,
    check_random,
    expected_numbers,
    fused_finding,
)
from pangu_sigma.doctor.findings import FAILURE, OK, UNKNOWN


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def test_this_machine_passes_what_it_can_try():
    found = check_device(None)
    assert [(finding.subject, finding.level) for finding in found] == [
        ("random", OK),
        ("overflow", OK),
        ("sort", OK),
        ("fused kernel", UNKNOWN),
    ]
    assert "28672 random numbers" in found[0].found and "as Inf" in found[1].found


def test_other_random_numbers_are_found():
    """One bit of one number."""

    def draw(seeds):
        numbers = expected_numbers(seeds.asnumpy())
        numbers[3, 7] += 2.0**-24
        return Tensor(numbers)

    finding = check_random(draw)
    assert finding.level == FAILURE and finding.found.startswith("1 of 28672")


@pytest.mark.parametrize("seen", ["never", "always", "not cleared"])
def test_an_overflow_that_is_not_seen_or_stays_is_found(seen):
    register = []

    def square(x):
        if seen == "not cleared":
            register.append(float(x.asnumpy().max()) > 200.0)
            return Tensor(np.float32(any(register)))
        return Tensor(np.float32(seen == "always"))

    finding = check_overflow(None, square)
    assert finding.level == FAILURE and "expected the second" in finding.found


def test_a_chip_that_saturates_is_asked_by_its_register():
    finding = check_overflow("910a", lambda x: Tensor(np.float32(x.asnumpy().max() > 200.0)))
    assert finding.level == OK and "in the status register" in finding.found


@pytest.mark.parametrize("chip", [None, "910a"])
def test_where_there_is_no_fused_kernel_none_is_tried(chip):
    assert check_fused(chip).level == UNKNOWN


@pytest.mark.parametrize(
    ("change", "level"), [(0.0, OK), (2.0**-10, OK), (2.0**-4, FAILURE), (np.nan, FAILURE), (np.inf, FAILURE)]
)
def test_a_fused_kernel_must_give_what_the_plain_one_gives(change, level):
    expected = np.array([[1.5, -20.0]], np.float16)
    assert fused_finding((expected + np.array([change, 0.0])).astype(np.float16), expected).level == level
