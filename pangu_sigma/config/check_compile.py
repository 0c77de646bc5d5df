"""Checks of what shortens compilation: `runtime.compile_cache`."""

from locmoe_ops.errors import InputError
from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.schema import Config


def check_compile(config: Config, world_size: int) -> None:
    """Checks it for a job of `world_size` ranks.

    Raises:
        InputError: it would have no effect, or was not tried with the others.
    """
    runtime = config.runtime
    for name, value, default in (("compile_cache", runtime.compile_cache, None),):
        if value != default and runtime.mode == "pynative":
            raise InputError(
                f"runtime.{name} is {str(value).lower() if value is True else value} with runtime.mode pynative, which "
                f"compiles nothing; expected {'null' if default is None else 'false'}"
            )
    if runtime.compile_cache is not None and resolve_runtime(config).runtime.backend == "hccl":
        raise InputError(
            f"runtime.compile_cache is {runtime.compile_cache} with runtime.backend hccl, where it was not tried: "
            "ranks have no way to agree whether all of them have a graph, and a kept one may run in another order; "
            "expected null"
        )
