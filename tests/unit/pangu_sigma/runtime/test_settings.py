"""Settings reach MindSpore and HCCL before the process joins others; a stand-in for MindSpore notes the order."""

import os

import pytest

import mindspore as ms

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema_run import DeviceMemoryConfig, HcclConfig
from pangu_sigma.runtime import runtime as runtime_module
from pangu_sigma.runtime.launch import Launch
from pangu_sigma.runtime.settings import (
    COMPILE_CACHE,
    GRAPH_FLAGS,
    VARIABLES,
    memory_sizes,
    set_context,
    set_environment,
    switch_off_compile_cache,
)


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
    monkeypatch.setattr("mindspore.communication.get_rank", lambda: 0)
    monkeypatch.setattr("mindspore.communication.get_group_size", lambda: 2)
    monkeypatch.setattr(runtime_module, "create_collectives", note("collectives"))
    monkeypatch.setattr(runtime_module, "read_launch", lambda: Launch(0, 2, 5))
    runtime_module.start_runtime(
        config_from_dict(
            {
                "runtime": {
                    "device": "ascend",
                    "jit_level": "O1",
                    "deterministic": True,
                    "hccl": {"buffer_mb": 64},
                    "memory": {"maximum_gb": 30},
                }
            }
        )
    )
    assert [call[0] for call in calls] == [
        "device",
        "context",
        "context",
        "deterministic",
        "memory",
        "init",
        "collectives",
    ]
    assert {call[3] for call in calls} == {"64"}
    assert calls[0][1] == ("Ascend", 5)
    assert calls[2][2] == {"jit_config": {"jit_level": "O1"}}
    assert calls[4][2] == {"init_size": "2.000GB", "max_size": "30.000GB"}


def test_ranks_that_mindspore_counts_otherwise_are_refused(monkeypatch):
    for name in ("set_device", "set_context"):
        monkeypatch.setattr(ms, name, lambda *args, **options: None)
    monkeypatch.setattr("mindspore.communication.init", lambda: None)
    monkeypatch.setattr("mindspore.communication.get_rank", lambda: 1)
    monkeypatch.setattr("mindspore.communication.get_group_size", lambda: 2)
    monkeypatch.setattr(runtime_module, "device_chip", lambda: "910b")
    monkeypatch.setattr(runtime_module, "read_launch", lambda: Launch(0, 2))
    with pytest.raises(InputError, match="MindSpore takes this process for rank 1 of 2 .* as rank 0 of 2"):
        runtime_module.start_runtime(config_from_dict({"runtime": {"device": "ascend"}}))


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({"device": "ascend"}, [{"jit_level": "O0"}]),
        ({"device": "ascend", "jit_level": "O1"}, [{"jit_level": "O1"}]),
        ({"device": "ascend", "mode": "pynative"}, []),
        ({"device": "cpu"}, []),
    ],
)
def test_the_level_of_the_compiler_is_named_on_ascend(monkeypatch, runtime, expected):
    found = []
    monkeypatch.setattr(ms, "set_context", lambda **options: found.append(options["jit_config"]))
    set_context(config_from_dict({"runtime": runtime}).runtime)
    assert found == expected


def test_without_settings_nothing_is_touched(monkeypatch):
    set_environment(HcclConfig())
    assert not any(name in os.environ for name in VARIABLES.values())
    assert memory_sizes(DeviceMemoryConfig()) == {}


def test_variables():
    set_environment(HcclConfig(buffer_mb=300, connect_timeout=600, exec_timeout=0))
    assert [os.environ[name] for name in ("HCCL_BUFFSIZE", "HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT")] == [
        "300",
        "600",
        "0",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "--enable_pass=matmul_assignadd_fusion"),
        ("--opt_level=1", "--opt_level=1 --enable_pass=matmul_assignadd_fusion"),
        ("--enable_pass=other --opt_level=1", "--opt_level=1 --enable_pass=other,matmul_assignadd_fusion"),
        ("--enable_pass=matmul_assignadd_fusion", "--enable_pass=matmul_assignadd_fusion"),
    ],
)
def test_products_that_add_are_asked_for_beside_what_the_environment_asks(monkeypatch, given, expected):
    monkeypatch.setenv(GRAPH_FLAGS, given or "")
    monkeypatch.setattr(ms, "set_context", lambda **options: None)
    runtime = {"device": "ascend", "precision": "fp16", "fused": {"accumulate": True}}
    set_context(config_from_dict({"runtime": runtime}).runtime)
    assert os.environ[GRAPH_FLAGS] == expected


def test_two_different_wishes_are_refused(monkeypatch):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "200")
    set_environment(HcclConfig(connect_timeout=200))
    with pytest.raises(
        InputError, match="runtime.hccl.connect_timeout is 300, but HCCL_CONNECT_TIMEOUT is 200 in the environment"
    ):
        set_environment(HcclConfig(connect_timeout=300))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"maximum_gb": 1.5}, {"init_size": "1.500GB", "max_size": "1.500GB"}),
        ({"initial_gb": 0.5, "increase_gb": 1}, {"init_size": "0.500GB", "increase_size": "1.000GB"}),
    ],
)
def test_sizes_as_mindspore_spells_them(given, expected):
    sizes = memory_sizes(DeviceMemoryConfig(**given))
    assert sizes == expected
    for size in sizes.values():
        ms.runtime.memory._check_memory_conf_valid(size)


@pytest.mark.parametrize("variable, context", [("1", None), ("true", None), (None, True), ("0", True), ("1", True)])
def test_the_compile_cache_is_switched_off_and_told(monkeypatch, capsys, variable, context):
    """Whoever asked for it, and however: MindSpore looks at its context first and then at the variable."""
    settings = {"enable_compile_cache": context}
    monkeypatch.setattr(ms, "get_context", settings.get)
    monkeypatch.setattr(ms, "set_context", lambda **changed: settings.update(changed))
    monkeypatch.setenv(COMPILE_CACHE, variable or "")
    switch_off_compile_cache()
    assert not settings["enable_compile_cache"] and os.environ[COMPILE_CACHE] == "0"
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "compile cache is switched off" in told
    assert (f"{COMPILE_CACHE} is {variable}" if variable not in (None, "0") else "enable_compile_cache is set") in told
    switch_off_compile_cache()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", ["", "0"])
def test_without_a_compile_cache_nothing_is_told(monkeypatch, capsys, variable):
    monkeypatch.setenv(COMPILE_CACHE, variable)
    switch_off_compile_cache()
    assert capsys.readouterr().err == "" and os.environ[COMPILE_CACHE] == variable
