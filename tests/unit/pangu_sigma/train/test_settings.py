"""Settings reach MindSpore and HCCL before the process joins others; a stand-in for MindSpore notes the order."""

import os

import pytest

import mindspore as ms

from locmoe_ops.errors import InputError
from pangu_sigma.config import config_from_dict
from pangu_sigma.config.schema import DeviceMemoryConfig, HcclConfig
from pangu_sigma.launch import Launch
from pangu_sigma.train import runtime as runtime_module
from pangu_sigma.train.settings import VARIABLES, memory_sizes, set_environment


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in VARIABLES.values():
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


def test_everything_is_set_before_the_ranks_meet(monkeypatch):
    calls = []

    def note(name):
        return lambda *args, **options: calls.append((name, args, options, os.environ.get("HCCL_BUFFSIZE")))

    monkeypatch.setattr(ms, "set_device", note("device"))
    monkeypatch.setattr(ms, "set_context", note("context"))
    monkeypatch.setattr(ms, "set_deterministic", note("deterministic"))
    monkeypatch.setattr(ms.runtime, "set_memory", note("memory"))
    monkeypatch.setattr("mindspore.communication.init", note("init"))
    monkeypatch.setattr(runtime_module, "create_collectives", note("collectives"))
    monkeypatch.setattr(runtime_module, "read_launch", lambda: Launch(0, 2, 5))
    runtime_module.start_runtime(config_from_dict({"runtime": {
        "device": "ascend", "jit_level": "O1", "deterministic": True, "hccl": {"buffer_mb": 64}, "memory": {"maximum_gb": 30}}}))
    assert [call[0] for call in calls] == ["device", "context", "context", "deterministic", "memory", "init", "collectives"]
    assert {call[3] for call in calls} == {"64"}
    assert calls[0][1] == ("Ascend", 5)
    assert calls[2][2] == {"jit_config": {"jit_level": "O1"}}
    assert calls[4][2] == {"init_size": "2.000GB", "max_size": "30.000GB"}


def test_without_settings_nothing_is_touched(monkeypatch):
    set_environment(HcclConfig())
    assert not any(name in os.environ for name in VARIABLES.values())
    assert memory_sizes(DeviceMemoryConfig()) == {}


def test_variables():
    set_environment(HcclConfig(buffer_mb=300, connect_timeout=600, exec_timeout=0))
    assert [os.environ[name] for name in ("HCCL_BUFFSIZE", "HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT")] == ["300", "600", "0"]


def test_two_different_wishes_are_refused(monkeypatch):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "200")
    set_environment(HcclConfig(connect_timeout=200))
    with pytest.raises(InputError, match="runtime.hccl.connect_timeout is 300, but HCCL_CONNECT_TIMEOUT is 200 in the environment"):
        set_environment(HcclConfig(connect_timeout=300))


@pytest.mark.parametrize(("given", "expected"), [
    ({"maximum_gb": 1.5}, {"init_size": "1.500GB", "max_size": "1.500GB"}),
    ({"initial_gb": 0.5, "increase_gb": 1}, {"init_size": "0.500GB", "increase_size": "1.000GB"}),
])
def test_sizes_as_mindspore_spells_them(given, expected):
    sizes = memory_sizes(DeviceMemoryConfig(**given))
    assert sizes == expected
    for size in sizes.values():
        ms.runtime.memory._check_memory_conf_valid(size)
