"""Checks of what shortens compilation: `runtime.compile_cache` and `runtime.lazy_inline`."""

from locmoe_ops.errors import InputError
from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.derived import job_topology
from pangu_sigma.config.schema import Config

AUTO, NONE = "auto", "none"  # of runtime.compile_cache; null is none, too


def check_compile(config: Config, world_size: int) -> None:
    """Checks both keys for a job of `world_size` ranks.

    Raises:
        InputError: one of them would have no effect, or was not tried with the others.
    """
    runtime = config.runtime
    names_folder = (runtime.compile_cache or NONE) not in (AUTO, NONE)
    for name, value, has_effect, expected in (
        ("compile_cache", runtime.compile_cache, names_folder, f"{AUTO} or {NONE}"),
        ("lazy_inline", "true", runtime.lazy_inline, "false"),
    ):
        if has_effect and runtime.mode == "pynative":
            raise InputError(
                f"runtime.{name} is {value} with runtime.mode pynative, which compiles nothing; expected {expected}"
            )
    if names_folder and resolve_runtime(config).runtime.backend == "hccl":
        raise InputError(
            f"runtime.compile_cache is {runtime.compile_cache} with runtime.backend hccl, where it was not tried: "
            "ranks have no way to agree whether all of them have a graph, and a kept one may run in another order; "
            f"expected {AUTO} or {NONE}"
        )
    if runtime.lazy_inline:
        _check_lazy_inline(config, world_size)


def _check_lazy_inline(config: Config, world_size: int) -> None:
    """Dense layers must be there, and be alike."""
    model, topology = config.model, job_topology(config, world_size)
    why = ""
    if model.dense_layers < 2:
        why = f"model.dense_layers {model.dense_layers}: layers with experts share no graph; expected two, or"
    elif model.hidden_dropout > 0.0 or model.attention_dropout > 0.0:
        name = "hidden_dropout" if model.hidden_dropout > 0.0 else "attention_dropout"
        why = f"model.{name} {getattr(model, name)}: each layer has random numbers of its own; expected 0.0, or"
    elif topology.tensor > 1:
        why = f"parallel.tensor {topology.tensor}: each layer has exchanges of its own; expected 1, or"
    elif config.parallel.overlap_gradients and topology.data > 1:
        why = "parallel.overlap_gradients true: each layer sends gradients of its own; expected false, or"
    if why:
        raise InputError(f"runtime.lazy_inline is true with {why} runtime.lazy_inline=false")
