"""`runtime` settings that MindSpore and HCCL take from their context and environment, put there before either looks."""

import os
from typing import Dict

import mindspore as ms

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema_run import DeviceMemoryConfig, HcclConfig, RuntimeConfig
from pangu_sigma.runtime.messages import log

VARIABLES = {
    "buffer_mb": "HCCL_BUFFSIZE",
    "connect_timeout": "HCCL_CONNECT_TIMEOUT",
    "exec_timeout": "HCCL_EXEC_TIMEOUT",
}
JIT_LEVEL = "O0"  # kernel by kernel, each collective on the stream of its communicator
GRAPH_FLAGS, ACCUMULATING_PASS = "MS_DEV_GRAPH_KERNEL_FLAGS", "matmul_assignadd_fusion"
COMPILE_CACHE = "MS_COMPILER_CACHE_ENABLE"


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
            raise InputError(
                f"runtime.hccl.{name} is {value}, but {variable} is {found} in the environment; expected the same, or "
                "one of them left out"
            )
        os.environ[variable] = str(value)


def use_accumulating_products() -> None:
    """Switches MindSpore's pass on that makes a product add its result to a parameter (`runtime.fused.accumulate`),
    beside what the environment asks for; before the first graph is compiled. It is off in MindSpore 2.10.
    """
    flags, asked = os.environ.get(GRAPH_FLAGS, "").split(), f"--enable_pass={ACCUMULATING_PASS}"
    for place, flag in enumerate(flags):
        if flag.startswith("--enable_pass="):
            passes = flag.partition("=")[2].split(",")
            asked = f"--enable_pass={','.join(dict.fromkeys([*passes, ACCUMULATING_PASS]))}"
            del flags[place]
            break
    os.environ[GRAPH_FLAGS] = " ".join([*flags, asked])


def switch_off_compile_cache(tell: bool = True) -> None:
    """Switches MindSpore's compile cache off where the environment or the context asks for it, before the first graph
    is compiled.

    MindSpore (2.10) finds a graph again by the Python files of the program and by how many graphs were compiled before
    it. A graph of another configuration, with other constants or shapes, is therefore taken for the same one and
    computes the other configuration's numbers. `pangu_sigma.runtime.compile_cache` uses it in another way.

    Args:
        tell: say so on stderr; of a job one rank should.
    """
    by_variable = os.environ.get(COMPILE_CACHE, "") not in ("", "0")
    by_context = bool(ms.get_context("enable_compile_cache"))
    if not (by_variable or by_context):
        return
    asked = "enable_compile_cache is set in MindSpore's context"
    if by_variable:
        asked = f"{COMPILE_CACHE} is {os.environ[COMPILE_CACHE]}"
    os.environ[COMPILE_CACHE] = "0"
    if by_context:
        ms.set_context(enable_compile_cache=False)
    if tell:
        log.warning(
            "%s, but MindSpore's compile cache is switched off: it takes graphs of different configurations for the "
            "same; runtime.compile_cache keeps graphs by all that they are made of",
            asked,
        )


def set_context(runtime: RuntimeConfig) -> None:
    """What MindSpore wants to know between naming the device and `init`; `runtime` is resolved for this machine.

    On Ascend the compiler's level is always named: MindSpore's own choice is O2 on 910A (read in its wheel), whole
    graphs to the device, which is deprecated and ties computation to exchanges that it does not need (inferred, not
    run).
    """
    if runtime.device == "ascend" and runtime.mode == "graph":
        ms.set_context(jit_config={"jit_level": runtime.jit_level or JIT_LEVEL})
    if runtime.fused.accumulate:
        use_accumulating_products()
    if runtime.deterministic:
        ms.set_deterministic(True)
    sizes = memory_sizes(runtime.memory)
    if sizes:
        ms.runtime.set_memory(**sizes)


def memory_sizes(memory: DeviceMemoryConfig) -> Dict[str, str]:
    """The arguments of `mindspore.runtime.set_memory` that differ from its defaults. A pool begins with no more than it
    may grow to.
    """
    given = {"init_size": memory.initial_gb, "increase_size": memory.increase_gb, "max_size": memory.maximum_gb}
    if memory.maximum_gb is not None and memory.initial_gb is None:
        given["init_size"] = min(memory.maximum_gb, 2.0)  # MindSpore's default is 2 GB
    return {name: f"{size:.3f}GB" for name, size in given.items() if size is not None}
