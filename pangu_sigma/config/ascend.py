"""Checks of what only Ascend takes: it is refused elsewhere, where it would change nothing."""

from dataclasses import fields
from typing import Any, Iterator, Tuple

from locmoe_ops.dispatch.registry import dispatcher_spec, names_of
from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config

HEAD_MULTIPLE = 16  # of FlashAttentionScore's head sizes


def check_ascend_settings(config: Config, backend: str, has_experts: bool) -> None:
    """Checks `runtime.hccl`, `memory`, `fused`, `jit_level` and `deterministic`.

    Args:
        backend: of the collectives, as resolved: hccl where the job runs on Ascend. has_experts: whether any layer is
            sparse.

    Raises:
        InputError: a setting has no effect in this job, or does not fit another key.
    """
    runtime = config.runtime
    if backend != "hccl":
        device = f"runtime.device {runtime.device}" + (", which is a CPU here" if runtime.device == "auto" else "")
        for path, value, default in _settings(config):
            if value != default:
                where = f"runtime.backend {backend}" if path.startswith("runtime.hccl.") else device
                raise InputError(
                    f"{path} is {shown(value)} with {where}, where it has no effect; expected {shown(default)}"
                )
    if runtime.jit_level is not None and runtime.mode == "pynative":
        raise InputError(
            f"runtime.jit_level is {runtime.jit_level} with runtime.mode pynative, which compiles nothing; expected "
            "null"
        )
    if runtime.jit_level == "O2" and has_experts and not dispatcher_spec(config.moe.dispatch.type).has_slots:
        raise InputError(
            f"runtime.jit_level is O2 with moe.dispatch.type {config.moe.dispatch.type}, whose parts have sizes that only the "
            "run knows; expected O0 or O1"
        )
    memory = runtime.memory
    if memory.maximum_gb is not None and memory.initial_gb is not None and memory.initial_gb > memory.maximum_gb:
        raise InputError(
            f"runtime.memory.initial_gb ({memory.initial_gb}) exceeds runtime.memory.maximum_gb ({memory.maximum_gb}); "
            "expected at most as much"
        )
    _check_fused(config, has_experts)


def _settings(config: Config) -> Iterator[Tuple[str, Any, Any]]:
    """Path, value and default of every setting."""
    runtime = config.runtime
    for name in ("hccl", "memory", "fused"):
        section = getattr(runtime, name)
        for one in fields(section):
            yield f"runtime.{name}.{one.name}", getattr(section, one.name), one.default
    yield "runtime.jit_level", runtime.jit_level, None
    yield "runtime.deterministic", runtime.deterministic, False


def _check_fused(config: Config, has_experts: bool) -> None:
    fused, model, dispatch = config.runtime.fused, config.model, config.moe.dispatch
    if fused.attention:
        _check_flash(config)
    for name in ("experts", "permute"):
        if getattr(fused, name) and not has_experts:
            raise InputError(
                f"runtime.fused.{name} is true with model.sparse_layers {model.sparse_layers}: no layer has experts; "
                "expected false"
            )
    if fused.permute and not dispatcher_spec(dispatch.type).fuses_permute:
        raise InputError(
            f"runtime.fused.permute is true with moe.dispatch.type {dispatch.type}, which gives tokens slots; expected false, "
            f"or {' or '.join(names_of(lambda one: one.fuses_permute))}"
        )


def _check_flash(config: Config) -> None:
    model, precision = config.model, config.runtime.precision
    if precision == "fp32":
        raise InputError(
            "runtime.fused.attention is true with runtime.precision fp32, which the kernel does not take; expected "
            "fp16 or bf16"
        )
    if model.attention_dropout > 0.0:
        raise InputError(
            f"model.attention_dropout is {model.attention_dropout} with runtime.fused.attention, which draws none of "
            "this project's random numbers; expected 0"
        )
    size = model.hidden_size // model.num_heads
    if size % HEAD_MULTIPLE:
        raise InputError(
            f"runtime.fused.attention is true with heads of {size} features (model.hidden_size {model.hidden_size} / "
            f"model.num_heads {model.num_heads}); expected a multiple of {HEAD_MULTIPLE}"
        )


def shown(value: Any) -> str:
    """A key's value as YAML spells it."""
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )
