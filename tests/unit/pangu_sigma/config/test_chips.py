"""The table of chips: complete, with sources, and the pure functions that read it."""

from dataclasses import fields

import pytest

from pangu_sigma.config.chips import CHIPS, DEFAULT_CHIP, ChipRule, chip_of_model, chip_of_soc, saturates
from pangu_sigma.config.schema_run import FusedConfig
from pangu_sigma.planner.hardware import load_hardware


@pytest.mark.parametrize("name", CHIPS)
def test_every_rule_has_a_source(name):
    rules = {field.name: getattr(CHIPS[name], field.name) for field in fields(CHIPS[name])}
    assert all(isinstance(rule, ChipRule) and len(rule.source) > 10 for rule in rules.values())
    assert set(rules["fused"].value) <= {field.name for field in fields(FusedConfig)}
    if rules["hardware"].value:
        assert load_hardware(rules["hardware"].value).chip == name
    assert DEFAULT_CHIP in CHIPS


@pytest.mark.parametrize(
    ("version", "chip"),
    [("ascend910", "910a"), ("ascend910b", "910b"), ("Ascend910B", "910b"), ("ascend910_93", "910c"), ("", None)]
    + [("ascend310p", None), ("ascend950", None)],
)
def test_mindspores_names(version, chip):
    assert chip_of_soc(version) == chip


@pytest.mark.parametrize(
    ("model", "chip"),
    [("910A", "910a"), ("910ProB", "910a"), ("910B3", "910b"), ("910B", "910b"), ("Ascend910_9392", "910c")]
    + [("310P3", None)],
)
def test_names_of_npu_smi(model, chip):
    assert chip_of_model(model) == chip


@pytest.mark.parametrize(
    ("chip", "mode", "expected"),
    [
        ("910a", None, True),
        ("910a", "INFNAN_MODE", True),  # it has no other
        ("910b", None, False),
        ("910b", "INFNAN_MODE", False),
        ("910b", "SATURATION_MODE", True),
        ("910c", "SATURATION_MODE", True),
        (None, "SATURATION_MODE", False),
    ],
)
def test_who_saturates(chip, mode, expected):
    assert saturates(chip, {} if mode is None else {"MS_ASCEND_CHECK_OVERFLOW_MODE": mode}) is expected
