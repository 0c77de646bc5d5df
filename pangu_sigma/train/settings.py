"""`runtime` settings that MindSpore and HCCL take from their context and environment, put there before either looks."""

import os
from typing import Dict

import mindspore as ms

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import DeviceMemoryConfig, HcclConfig, RuntimeConfig

VARIABLES = {"buffer_mb": "HCCL_BUFFSIZE", "connect_timeout": "HCCL_CONNECT_TIMEOUT", "exec_timeout": "HCCL_EXEC_TIMEOUT"}


def set_environment(hccl: HcclConfig) -> None:
    """Sets HCCL's variables; before MindSpore's `init`, since HCCL reads them when it makes its first group.

    Raises:
        InputError: a variable is set to something else already.
    """
    for name, variable in VARIABLES.items():
        value, found = getattr(hccl, name), os.environ.get(variable)
        if value is None:
            continue
        if found not in (None, str(value)):
            raise InputError(f"runtime.hccl.{name} is {value}, but {variable} is {found} in the environment; expected the same, or one of "
                             "them left out")
        os.environ[variable] = str(value)


def set_context(runtime: RuntimeConfig) -> None:
    """What MindSpore wants to know between naming the device and `init`."""
    if runtime.jit_level is not None:
        ms.set_context(jit_config={"jit_level": runtime.jit_level})
    if runtime.deterministic:
        ms.set_deterministic(True)
    sizes = memory_sizes(runtime.memory)
    if sizes:
        ms.runtime.set_memory(**sizes)


def memory_sizes(memory: DeviceMemoryConfig) -> Dict[str, str]:
    """The arguments of `mindspore.runtime.set_memory` that differ from its defaults. A pool begins with no more than it may grow to."""
    given = {"init_size": memory.initial_gb, "increase_size": memory.increase_gb, "max_size": memory.maximum_gb}
    if memory.maximum_gb is not None and memory.initial_gb is None:
        given["init_size"] = min(memory.maximum_gb, 2.0)  # MindSpore's default is 2 GB
    return {name: f"{size:.3f}GB" for name, size in given.items() if size is not None}
