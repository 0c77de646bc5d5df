"""What only Ascend takes is refused elsewhere, and where it does not fit other keys; on Ascend it is let through."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config import ascend
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate

SETTINGS = {
    "hccl": {"buffer_mb": 300, "connect_timeout": 600, "exec_timeout": 0},
    "jit_level": "O1",
    "deterministic": True,
    "precision": "fp16",
    "memory": {"initial_gb": 2, "increase_gb": 0.5, "maximum_gb": 58},
    "fused": {"attention": True, "experts": True, "permute": True},
}
RAGGED = {"dispatch": {"type": "ragged"}}


def make(runtime, moe=None, **model):
    return config_from_dict({"runtime": runtime, "moe": moe or {}, "model": model})


def test_on_ascend_all_of_it_is_taken():
    validate(make({"device": "ascend", **SETTINGS}, RAGGED), 1)


@pytest.mark.parametrize(
    ("runtime", "fragment"),
    [
        (
            {"hccl": {"buffer_mb": 300}},
            "runtime.hccl.buffer_mb is 300 with runtime.backend tcp, where it has no effect; expected null",
        ),
        ({"hccl": {"exec_timeout": 0}}, "runtime.hccl.exec_timeout is 0 with runtime.backend tcp"),
        ({"memory": {"maximum_gb": 4}}, "runtime.memory.maximum_gb is 4.0 with runtime.device cpu"),
        ({"jit_level": "O1"}, "runtime.jit_level is O1 with runtime.device cpu, where it has no effect; expected null"),
        (
            {"deterministic": True},
            "runtime.deterministic is true with runtime.device cpu, where it has no effect; expected false",
        ),
        ({"fused": {"attention": True}}, "runtime.fused.attention is true with runtime.device cpu"),
        ({"fused": {"experts": True}}, "runtime.fused.experts is true with runtime.device cpu"),
        ({"fused": {"permute": True}}, "runtime.fused.permute is true with runtime.device cpu"),
        ({"fused": {"accumulate": True}}, "runtime.fused.accumulate is true with runtime.device cpu"),
    ],
)
def test_on_cpu_it_is_refused(runtime, fragment):
    with pytest.raises(InputError) as caught:
        validate(make({"device": "cpu", **runtime}), 1)
    assert fragment in str(caught.value)


def test_auto_says_what_it_found(monkeypatch):
    monkeypatch.setattr(ascend, "runs_on_ascend", lambda config: False)
    with pytest.raises(InputError, match="runtime.device auto, which is a CPU here"):
        validate(make({"jit_level": "O0"}), 1)


@pytest.mark.parametrize(
    ("runtime", "moe", "model", "fragment"),
    [
        ({"jit_level": "O0", "mode": "pynative"}, {}, {}, "runtime.mode pynative, which compiles nothing"),
        ({"jit_level": "O2"}, RAGGED, {}, "runtime.jit_level is O2 with moe.dispatch.type ragged"),
        (
            {"memory": {"initial_gb": 8, "maximum_gb": 4}},
            {},
            {},
            "runtime.memory.initial_gb (8.0) exceeds runtime.memory.maximum_gb (4.0)",
        ),
        ({"fused": {"permute": True}}, {}, {}, "runtime.fused.permute is true with moe.dispatch.type flat"),
        ({"fused": {"experts": True}}, {}, {"sparse_layers": 0}, "no layer has experts"),
        ({"fused": {"attention": True}}, {}, {}, "runtime.precision fp32, which the kernel does not take"),
        (
            {"fused": {"attention": True}, "precision": "bf16"},
            {},
            {"attention_dropout": 0.1},
            "model.attention_dropout is 0.1",
        ),
        ({"fused": {"attention": True}, "precision": "fp16"}, {}, {"num_heads": 32}, "heads of 8 features"),
    ],
)
def test_what_does_not_fit_is_refused(runtime, moe, model, fragment):
    with pytest.raises(InputError) as caught:
        validate(make({"device": "ascend", **runtime}, moe, **model), 1)
    assert fragment in str(caught.value)
