"""What a chip does not have is refused in one line; without a chip nothing is."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.check_chip import with_chip
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate

FP16 = {"precision": "fp16"}
HEADS = {"model": {"hidden_size": 64, "num_heads": 4}}  # of 16 features, as the kernel wants them


def make(runtime, **sections):
    return config_from_dict({"runtime": {"device": "ascend", **runtime}, **sections})


@pytest.mark.parametrize(
    ("chip", "runtime", "fragment"),
    [
        ("910a", {"precision": "bf16"}, "runtime.precision is bf16 with runtime.chip 910a, which has none"),
        ("910a", {"hccl": {"exec_timeout": 0}}, "runtime.hccl.exec_timeout is 0 with runtime.chip 910a; expected 1 to"),
        (
            "910a",
            {"fused": {"attention": True}, **FP16},
            "runtime.fused.attention is true with runtime.chip 910a, which has",
        ),
        ("910a", {"fused": {"experts": True}, **FP16}, "runtime.fused.experts is true with runtime.chip 910a, which"),
        ("910a", {"hccl": {"exec_timeout": 17341}}, "expected 1 to 17340 seconds"),
    ],
)
def test_what_a_chip_has_not_is_refused(chip, runtime, fragment):
    with pytest.raises(InputError) as caught:
        validate(make({**runtime, "chip": chip}, **HEADS), 1)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
    for other in ("auto", "910b"):
        validate(make({**runtime, "chip": other}, **HEADS), 1)


@pytest.mark.parametrize(
    ("chip", "precision", "mode", "refused"),
    [
        ("910a", "fp16", None, True),  # which always saturates
        ("910b", "fp16", "SATURATION_MODE", True),
        ("910b", "fp16", None, False),
        ("910b", "bf16", "SATURATION_MODE", False),  # which has float32's range
        ("auto", "fp16", None, False),
    ],
)
def test_gradients_travel_narrow_only_where_an_overflow_shows(monkeypatch, chip, precision, mode, refused):
    monkeypatch.setenv("MS_ASCEND_CHECK_OVERFLOW_MODE", mode or "")
    config = make({"chip": chip, "precision": precision}, parallel={"reduce_precision": precision})
    if not refused:
        return validate(config, 2)
    with pytest.raises(InputError, match=f"reduce_precision is fp16 on a device that saturates .runtime.chip {chip}."):
        validate(config, 2)


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


# ---- all-to-all


def job(chip, expert, tensor, dispatch="flat", hccl=None, **parallel):
    moe = {"num_experts": 8, "num_groups": 2, "dispatch": {"type": dispatch}}
    given = {"expert": expert, "tensor": tensor, "ranks_per_node": 8, **parallel}
    runtime = {"chip": chip, "hccl": hccl or {}}
    return make(runtime, moe=moe, parallel=given, model={"num_heads": 8}, train={"global_batch_size": 64})


@pytest.mark.parametrize(
    ("ranks", "expert", "tensor", "dispatch", "fragment"),
    [
        (8, 8, 1, "flat", None),
        (8, 8, 1, "ragged", None),
        (8, 4, 1, "flat", None),
        (8, 2, 2, "flat", None),
        (
            8,
            2,
            4,
            "flat",
            "parallel.expert 2, parallel.tensor 4 and moe.dispatch.type flat exchange tokens among ranks 0, 4",
        ),
        (8, 4, 2, "flat", "among ranks 0, 2, 4, 6 on runtime.chip 910a"),
        (16, 2, 8, "ragged", "among ranks 0, 8 on runtime.chip 910a"),
        (16, 16, 1, "flat", None),
        (16, 16, 1, "hierarchical", "among ranks 0, 8 on runtime.chip 910a"),  # rails
        (8, 8, 1, "hierarchical", None),
    ],
)
def test_all_to_all_by_the_rule_of_the_chip(ranks, expert, tensor, dispatch, fragment):
    moe = {"num_experts": 16, "num_groups": 2, "dispatch": {"type": dispatch}}
    given = {"expert": expert, "tensor": tensor, "ranks_per_node": 8}

    def config(chip, **changes):
        parts = {"model": {"num_heads": 8}, "train": {"global_batch_size": 64}, "moe": moe}
        return make({"chip": chip, **changes}, parallel=given, **parts)

    for chip in ("auto", "910b"):
        validate(config(chip), ranks)
    if fragment is None:
        return validate(config("910a"), ranks)
    with pytest.raises(InputError) as caught:
        validate(config("910a"), ranks)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
    for way_out in ("parallel.all_to_all: gathered", "runtime.hccl.unchecked_all_to_all: true"):
        assert way_out in str(caught.value)
    validate(config("910a", hccl={"unchecked_all_to_all": True}), ranks)


def test_gathered_tokens_need_no_all_to_all():
    validate(job("910a", 2, 4, all_to_all="gathered"), 8)
    validate(job("910a", 2, 8, "hierarchical", all_to_all="gathered"), 16)


@pytest.mark.parametrize(
    ("config", "fragment"),
    [
        (lambda: job("910b", 1, 1, all_to_all="gathered"), "all_to_all is gathered, but parallel.expert is 1"),
        (
            lambda: job("910b", 2, 1, "ragged", all_to_all="gathered"),
            "moe.dispatch.type ragged, whose parts have no com",
        ),
        (
            lambda: job("910a", 2, 4, hccl={"unchecked_all_to_all": True}, all_to_all="gathered"),
            "unchecked_all_to_all is true with parallel.all_to_all gathered, which makes no all-to-all",
        ),
        (
            lambda: job("910b", 2, 1, hccl={"unchecked_all_to_all": True}),
            "runtime.hccl.unchecked_all_to_all is true with runtime.chip 910b, where HCCL's all-to-all has no rule",
        ),
    ],
)
def test_settings_that_would_change_nothing(config, fragment):
    with pytest.raises(InputError) as caught:
        validate(config(), 8)
    assert fragment in str(caught.value)
