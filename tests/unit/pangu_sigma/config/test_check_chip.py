"""What a chip does not have is refused in one line; without a chip nothing is."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.check_chip import with_chip
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate


def make(runtime, **sections):
    return config_from_dict({"runtime": {"device": "ascend", **runtime}, **sections})


@pytest.mark.parametrize(
    ("chip", "runtime", "fragment"),
    [
        ("910a", {"precision": "bf16"}, "runtime.precision is bf16 with runtime.chip 910a, which has none"),
        ("910a", {"hccl": {"exec_timeout": 0}}, "runtime.hccl.exec_timeout is 0 with runtime.chip 910a; expected 1 to"),
        ("910a", {"hccl": {"exec_timeout": 17341}}, "expected 1 to 17340 seconds"),
    ],
)
def test_what_a_chip_has_not_is_refused(chip, runtime, fragment):
    with pytest.raises(InputError) as caught:
        validate(make({**runtime, "chip": chip}), 1)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
    for other in ("auto", "910b"):
        validate(make({**runtime, "chip": other}), 1)


def test_a_chip_is_refused_on_cpu():
    with pytest.raises(InputError, match="runtime.chip is 910b with runtime.device cpu, where it has no effect; expec"):
        validate(config_from_dict({"runtime": {"device": "cpu", "chip": "910b"}}), 1)


@pytest.mark.parametrize(
    ("named", "found", "expected"), [("auto", "910b", "910b"), ("910a", "910a", "910a"), ("910a", None, "910a")]
)
def test_the_chip_that_was_found_stands_for_auto(named, found, expected):
    assert with_chip(make({"chip": named}), found, "the device").runtime.chip == expected


def test_another_chip_than_the_one_that_was_found():
    with pytest.raises(InputError, match="runtime.chip is 910a, but the device is 910b; expected the same, or auto"):
        with_chip(make({"chip": "910a"}), "910b", "the device")
    assert with_chip(config_from_dict({"runtime": {"device": "cpu"}}), "910b", "x").runtime.chip == "auto"
