"""Which device runs a job, and checks of the section `runtime`: what only Ascend takes is refused elsewhere, where it
would change nothing.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, List, Tuple

from locmoe_ops.dispatch.registry import dispatcher_spec, names_of
from locmoe_ops.errors import InputError
from pangu_sigma.config.chips import CHIPS, DEFAULT_CHIP, known_chip
from pangu_sigma.config.derived import has_experts
from pangu_sigma.config.schema import Config
from pangu_sigma.config.strict_yaml import spelled

_TCP_BUCKET_MB = 0.5
HEAD_MULTIPLE = 16  # of FlashAttentionScore's head sizes


def has_devices() -> bool:
    """Whether the driver shows Ascend devices on this machine."""
    return any(Path("/dev").glob("davinci[0-9]*"))


def runs_on_ascend(config: Config) -> bool:
    """True if the job uses Ascend devices: as `runtime.device` says, or, if that is auto, where the driver shows any.

    Needs no MindSpore, so that processes which have nothing to compute can decide quickly.
    """
    if config.runtime.device == "auto":
        return has_devices()
    return config.runtime.device == "ascend"


def resolve_runtime(config: Config) -> Config:
    """The configuration with `auto` in `runtime.device` and `runtime.backend` replaced by this machine's choice."""
    ascend = runs_on_ascend(config)
    backend = config.runtime.backend
    if backend == "auto":
        backend = "hccl" if ascend else "tcp"
    runtime = replace(config.runtime, device="ascend" if ascend else "cpu", backend=backend)
    return replace(config, runtime=runtime)


def overlap_bucket(config: Config) -> int:
    """Most numbers of a message of gradients that leaves during the backward pass: as `parallel.bucket_mb` says, else
    as suits the backend: large enough to fill a link, small enough that the first leaves soon.
    """
    megabytes = config.parallel.bucket_mb
    if megabytes is None:
        chip = CHIPS[known_chip(config.runtime.chip) or DEFAULT_CHIP]
        on_hccl = resolve_runtime(config).runtime.backend == "hccl"
        megabytes = float(chip.bucket_mb.value) if on_hccl else _TCP_BUCKET_MB
    return int(megabytes * 2**20) // 4


def flattens(config: Config, data_ranks: int) -> bool:
    """Whether biases and norms are updated in vectors (`optimizer.flat`), in a job of `data_ranks` data-parallel ranks.

    Where optimizer state is shared out over ranks, it is False: there vectors hold all that a rank updates.
    """
    optimizer = config.optimizer
    if optimizer.zero != "none" and data_ranks > 1:
        return False
    return runs_on_ascend(config) if optimizer.flat is None else optimizer.flat


def check_runtime(config: Config) -> None:
    """Checks the section `runtime`: backend and device, precision, loss scale, and what only Ascend takes (`chip`,
    `hccl`, `memory`, `fused`, `jit_level` and `deterministic`).

    Raises:
        InputError: a setting has no effect in this job, or does not fit another key.
    """
    runtime = config.runtime
    if (runtime.backend, runtime.device) in (("hccl", "cpu"), ("tcp", "ascend")):
        raise InputError(
            f"runtime.backend {runtime.backend} does not run on runtime.device {runtime.device}; "
            "expected hccl on ascend, tcp on cpu, or auto"
        )
    if runtime.precision == "bf16" and (runtime.backend == "tcp" or not runs_on_ascend(config)):
        raise InputError(
            f"runtime.precision bf16 is not supported on CPU (runtime.device {runtime.device}); expected fp32 or fp16"
        )
    backend = resolve_runtime(config).runtime.backend
    if backend != "hccl":
        _refuse_off_ascend(config, backend)
    if runtime.jit_level is not None and runtime.mode == "pynative":
        raise InputError(
            f"runtime.jit_level is {runtime.jit_level} with runtime.mode pynative, which compiles nothing; expected "
            "null"
        )
    if runtime.jit_level == "O2" and has_experts(config) and not dispatcher_spec(config.moe.dispatch.type).has_slots:
        raise InputError(
            f"runtime.jit_level is O2 with moe.dispatch.type {config.moe.dispatch.type}, whose parts have sizes that "
            "only the "
            "run knows; expected O0 or O1"
        )
    memory = runtime.memory
    if memory.maximum_gb is not None and memory.initial_gb is not None and memory.initial_gb > memory.maximum_gb:
        raise InputError(
            f"runtime.memory.initial_gb ({memory.initial_gb}) exceeds runtime.memory.maximum_gb ({memory.maximum_gb}); "
            "expected at most as much"
        )
    _check_fused(config)
    scale = runtime.loss_scale
    if scale.minimum > scale.initial:
        raise InputError(
            f"runtime.loss_scale.minimum ({scale.minimum}) exceeds "
            f"runtime.loss_scale.initial ({scale.initial}); expected at most as much"
        )


def _refuse_off_ascend(config: Config, backend: str) -> None:
    """Every setting that only Ascend takes has its default."""
    runtime = config.runtime
    settings: List[Tuple[str, Any, Any]] = []  # path, value, default
    for name in ("hccl", "memory", "fused"):
        for key in fields(getattr(runtime, name)):
            settings.append((f"runtime.{name}.{key.name}", getattr(getattr(runtime, name), key.name), key.default))
    settings.append(("runtime.chip", runtime.chip, "auto"))
    settings.append(("runtime.jit_level", runtime.jit_level, None))
    settings.append(("runtime.deterministic", runtime.deterministic, False))
    device = f"runtime.device {runtime.device}" + (", which is a CPU here" if runtime.device == "auto" else "")
    for path, value, default in settings:
        if value != default:
            where = f"runtime.backend {backend}" if path.startswith("runtime.hccl.") else device
            raise InputError(
                f"{path} is {spelled(value)} with {where}, where it has no effect; expected {spelled(default)}"
            )


def _check_fused(config: Config) -> None:
    fused, model, dispatch = config.runtime.fused, config.model, config.moe.dispatch
    if fused.attention and config.runtime.precision == "fp32":
        raise InputError(
            "runtime.fused.attention is true with runtime.precision fp32, which the kernel does not take; expected "
            "fp16 or bf16"
        )
    if fused.attention and model.attention_dropout > 0.0:
        raise InputError(
            f"model.attention_dropout is {model.attention_dropout} with runtime.fused.attention, which draws none of "
            "this project's random numbers; expected 0"
        )
    size = model.hidden_size // model.num_heads
    if fused.attention and size % HEAD_MULTIPLE:
        raise InputError(
            f"runtime.fused.attention is true with heads of {size} features (model.hidden_size {model.hidden_size} / "
            f"model.num_heads {model.num_heads}); expected a multiple of {HEAD_MULTIPLE}"
        )
    for name in ("experts", "permute"):
        if getattr(fused, name) and not has_experts(config):
            raise InputError(
                f"runtime.fused.{name} is true with model.sparse_layers {model.sparse_layers}: no layer has experts; "
                "expected false"
            )
    if fused.permute and not dispatcher_spec(dispatch.type).fuses_permute:
        raise InputError(
            f"runtime.fused.permute is true with moe.dispatch.type {dispatch.type}, which gives tokens slots; "
            "expected false, "
            f"or {' or '.join(names_of(lambda one: one.fuses_permute))}"
        )
