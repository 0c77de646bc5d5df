"""Checks across keys: what each key's own type and limits cannot say. All raise `InputError` naming keys and values."""

import dataclasses
import os
from pathlib import Path
from typing import Iterator, Optional, Tuple

from locmoe_ops.dispatch.registry import KEYS as DISPATCHER_KEYS
from locmoe_ops.dispatch.registry import dispatcher_spec, names_of
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes, router_spec, routers
from pangu_sigma.config.ascend import check_ascend_settings, shown
from pangu_sigma.config.schema import CapacityConfig, Config, DispatchConfig
from pangu_sigma.config.ascend import check_ascend_settings
from pangu_sigma.config.derived import experts_per_group, ffn_hidden_size, has_experts
from pangu_sigma.config.schema import CapacityConfig, Config


def validate(config: Config, world_size: int) -> None:
    """Checks a configuration for a job of `world_size` ranks.

    Raises:
        InputError: two keys, or a key and the number of ranks, do not fit; names both with their values.
    """
    _check_model(config)
    _check_experts(config)
    _check_router(config)
    _check_dispatch(config)
    _check_capacity(config)
    _check_parallel(config, world_size)
    _check_layout(config)
    _check_batch(config, world_size)
    _check_schedule(config)
    _check_checkpoints(config)
    _check_runtime(config)
    check_paths(config)


def check_paths(config: Config) -> None:
    """The folder `data.path` is for what `prepare` writes alone: a run there, or text to read, would be mistaken for
    it.

    Raises:
        InputError: the run directory, a source or the given tokenizer lies inside (or is) `data.path`, through whatever
            links.
    """
    folder = _real(config.data.path)
    for key, text in _other_paths(config):
        other = _real(text)
        if other == folder or folder in other.parents:
            where = "" if str(other) == os.path.abspath(text) else f", as {other},"
            raise InputError(
                f"{key} ({text}) lies inside data.path ({config.data.path}){where} "
                "which is for what `prepare` writes; expected separate folders"
            )


def _real(text: str) -> Path:
    try:
        return Path(os.path.realpath(text))
    except UnicodeEncodeError:  # no file of this name can be reached in this locale, nor a link
        return Path(os.path.abspath(text))


def runs_on_ascend(config: Config) -> bool:
    """True if the job uses Ascend devices: as `runtime.device` says, or, if that is auto, where the driver shows any.

    Needs no MindSpore, so that processes which have nothing to compute can decide quickly.
    """
    if config.runtime.device == "auto":
        return any(Path("/dev").glob("davinci[0-9]*"))
    return config.runtime.device == "ascend"


def resolve_runtime(config: Config) -> Config:
    """The configuration with `auto` in `runtime.device` and `runtime.backend` replaced by this machine's choice."""
    ascend = runs_on_ascend(config)
    backend = config.runtime.backend
    if backend == "auto":
        backend = "hccl" if ascend else "tcp"
    runtime = dataclasses.replace(config.runtime, device="ascend" if ascend else "cpu", backend=backend)
    return dataclasses.replace(config, runtime=runtime)


def _require_divides(small: Tuple[str, int], large: Tuple[str, int], remedy: Optional[str] = None) -> None:
    if large[1] % small[1]:
        raise InputError(
            f"{small[0]} ({small[1]}) does not divide {large[0]} ({large[1]}); "
            + (remedy or f"expected a divisor, as in {_nearest_divisors(small[1], large[1])}")
        )


def _nearest_divisors(value: int, whole: int) -> str:
    """The divisors of `whole` next to `value`, below and above it."""
    reach = 10_000  # numbers tried on either side, since a key may hold any number
    below = next((n for n in range(min(value, whole), max(0, value - reach), -1) if whole % n == 0), 1)
    above = next((n for n in range(value, min(whole, value + reach) + 1) if whole % n == 0), whole)
    return str(below) if below == above else f"{below} or {above}"


def _other_paths(config: Config) -> Iterator[Tuple[str, str]]:
    yield "train.output_dir", config.train.output_dir
    for domain, source in config.data.prepare.sources.items():
        yield f"data.prepare.sources.{domain}", source
    if config.data.prepare.tokenizer is not None:
        yield "data.prepare.tokenizer", config.data.prepare.tokenizer


def _check_model(config: Config) -> None:
    _require_divides(("model.num_heads", config.model.num_heads), ("model.hidden_size", config.model.hidden_size))


def _check_experts(config: Config) -> None:
    moe = config.moe
    _require_divides(("moe.num_groups", moe.num_groups), ("moe.num_experts", moe.num_experts))
    if moe.domain_groups is None:
        return
    if not moe.domain_groups:
        raise InputError("moe.domain_groups is empty; expected one group per domain, or null")
    for domain, group in enumerate(moe.domain_groups):
        if not 0 <= group < moe.num_groups:
            raise InputError(
                f"moe.domain_groups[{domain}] is {group}; expected a group from 0 to "
                f"{moe.num_groups - 1} (moe.num_groups is {moe.num_groups})"
            )


def _check_router(config: Config) -> None:
    router, experts = config.moe.router, experts_per_group(config)
    if not has_experts(config):
        return
    kind = router_spec(router.type)
    if kind.top_k is not None and router.top_k != kind.top_k:
        raise InputError(
            f"moe.router.top_k is {router.top_k} with moe.router.type {router.type}, which sends a token to "
            f"{kind.top_k} expert{'s' if kind.top_k > 1 else ''}; expected {kind.top_k}"
        )
    if kind.expert_choice and config.moe.dispatch.drop_priority != "weight":
        raise InputError(
            f"moe.dispatch.drop_priority is {config.moe.dispatch.drop_priority} with moe.router.type {router.type}, "
            "whose experts choose the tokens of largest weight; expected weight"
        )
    _check_local_term(config)
    if router.balance_rate > 0.0 and "balance_rate" not in kind.selection_biases:
        balanced = [name for name, one in routers().items() if "balance_rate" in one.spec.selection_biases]
        raise InputError(
            f"moe.router.balance_rate is {router.balance_rate} with moe.router.type {router.type}; expected 0, or one "
            f"of {', '.join(balanced)}, whose selection takes a bias"
        )
    if router.top_k > experts:
        raise InputError(
            f"moe.router.top_k ({router.top_k}) exceeds the {experts} experts of a group "
            f"(moe.num_experts {config.moe.num_experts} / moe.num_groups {config.moe.num_groups}); expected at most "
            f"{experts}"
        )
    kind.check(router.own, router_sizes(config))


def router_sizes(config: Config) -> RouterSizes:
    """What the router's declaration is told of the model."""
    return RouterSizes(config.model.hidden_size, config.moe.num_experts, config.moe.num_groups)


def _check_dispatch(config: Config) -> None:
    dispatch, capacity, parallel = config.moe.dispatch, config.moe.capacity, config.parallel
    spec, router = dispatcher_spec(dispatch.type), router_spec(config.moe.router.type)
    if router.expert_choice and not spec.has_slots:
        raise InputError(
            f"moe.dispatch.type is {dispatch.type} with moe.router.type {config.moe.router.type}, whose experts choose among "
            f"the tokens that want their slots; expected {' or '.join(names_of(lambda one: one.has_slots))}"
        )
    for key in (key for key in DISPATCHER_KEYS if key not in spec.keys):
        section, _, name = key.partition(".")
        value, default = getattr(getattr(config.moe, section), name), getattr(_MOE_DEFAULTS[section], name)
        if value != default:
            raise InputError(
                f"moe.{key} is {shown(value)} with moe.dispatch.type {dispatch.type}, "
                f"{spec.reasons.get(key, 'which does not use it')}; expected {shown(default)}"
            )
    if dispatch.chunks > spec.most_chunks and "dispatch.chunks" in spec.keys:
        raise InputError(
            f"moe.dispatch.chunks is {dispatch.chunks} with moe.dispatch.type {dispatch.type}, "
            f"{spec.reasons.get('dispatch.chunks', 'which takes no more')}; expected 1 "
            f"{'or' if spec.most_chunks == 2 else 'to'} {spec.most_chunks}"
        )
    if dispatch.group_wise and (parallel.tensor == 1 or parallel.expert == 1):
        raise InputError(
            f"moe.dispatch.group_wise is true with parallel.tensor {parallel.tensor} and parallel.expert "
            f"{parallel.expert}, where no two ranks send the same tokens to others; expected false, or both degrees "
            "above 1"
        )
    if dispatch.overflow == "repick" and not router.second_experts:
        raise InputError(
            f"moe.dispatch.overflow is repick with moe.router.type {config.moe.router.type}, which has no weight for "
            "another expert; expected drop"
        )
    if dispatch.chunks > 1 and capacity.local_share == 1.0:
        raise InputError(
            f"moe.dispatch.chunks is {dispatch.chunks} with moe.capacity.local_share 1.0, which leaves one tier and "
            "nothing to overlap it with; expected 1"
        )


_MOE_DEFAULTS = {"dispatch": DispatchConfig(), "capacity": CapacityConfig()}

# Keys of moe.capacity that a mode has no use for.
_BOUND_KEYS = ("form", "delta_statistic", "quantile", "minimum_factor", "maximum_factor", "estimate_steps")
_ADAPTIVE_KEYS = ("interval", "buckets", "hysteresis")
_UNUSED_BY_MODE = {
    "factor": _BOUND_KEYS + _ADAPTIVE_KEYS,
    "critical": ("factor", *_ADAPTIVE_KEYS),
    "adaptive": ("factor",),
}


def _check_capacity(config: Config) -> None:
    capacity, default = config.moe.capacity, CapacityConfig()
    if not has_experts(config):
        return
    if capacity.mode != "factor" and not router_spec(config.moe.router.type).gate_weights:
        raise InputError(
            f"moe.capacity.mode is {capacity.mode} with moe.router.type {config.moe.router.type}, which has no gate "
            "weights to measure cosines with; expected factor"
        )
    for name in _UNUSED_BY_MODE[capacity.mode]:
        _require_default(name, capacity, default, f"moe.capacity.mode {capacity.mode}")
    if capacity.delta_statistic != "quantile":
        _require_default("quantile", capacity, default, f"moe.capacity.delta_statistic {capacity.delta_statistic}")
    if capacity.maximum_factor is not None and capacity.minimum_factor > capacity.maximum_factor:
        raise InputError(
            f"moe.capacity.minimum_factor ({capacity.minimum_factor}) exceeds moe.capacity.maximum_factor "
            f"({capacity.maximum_factor}); expected at most as much"
        )


def _require_default(name: str, found: CapacityConfig, default: CapacityConfig, reason: str) -> None:
    value, expected = getattr(found, name), getattr(default, name)
    if value != expected:
        shown = "null" if expected is None else expected
        raise InputError(
            f"moe.capacity.{name} is {value} with {reason}, which does not use it; expected {shown}, its default"
        )


def _check_local_term(config: Config) -> None:
    router, term = config.moe.router, config.moe.router.local_term
    if term.kind == "none":
        return
    kind = router_spec(router.type)
    if "local_term" not in kind.selection_biases:
        raise InputError(
            f"moe.router.local_term.kind is {term.kind} with moe.router.type {router.type}, which {kind.selection_rule}; expected none"
        )
    if term.start_step >= config.train.steps:
        raise InputError(
            f"moe.router.local_term.start_step ({term.start_step}) is not before the last step, train.steps "
            f"({config.train.steps}): the term would keep its initial strength; expected an earlier step"
        )


def _check_cluster(
    prefix: str, ranks: Tuple[str, int], node: Tuple[str, int], expert: int, num_experts: int, tensor: int = 1
) -> None:
    """One cluster's degrees: nodes of equal size, expert groups that fill nodes evenly, experts that fill groups."""
    _require_divides(node, ranks)
    degree = (f"{prefix}.expert", expert)
    _require_divides(degree, ranks)
    _require_divides(degree, ("moe.num_experts", num_experts))
    name, group = (degree[0], expert) if tensor == 1 else (f"{degree[0]} x {prefix}.tensor", expert * tensor)
    if group % node[1] and node[1] % group:
        raise InputError(
            f"{name} ({group}) and {node[0]} ({node[1]}) do not fit; expected one to be a multiple of the other"
        )


def _check_parallel(config: Config, world_size: int) -> None:
    parallel = config.parallel
    ranks = ("the number of ranks", world_size)
    node = ("parallel.ranks_per_node", parallel.ranks_per_node or world_size)
    group = parallel.expert * parallel.tensor
    _require_divides(
        ("parallel.expert x parallel.tensor", group), ranks, _more_ranks_or_smaller_groups(group, world_size)
    )
    _check_cluster("parallel", ranks, node, parallel.expert, config.moe.num_experts, parallel.tensor)
    _check_tensor(config, node)


def _more_ranks_or_smaller_groups(group: int, world_size: int) -> str:
    """The three ways out for the most frequent of first errors: a job whose groups are larger than it."""
    enough = -(-world_size // group) * group
    return (
        f"start {enough} ranks (`bash scripts/train_msrun.sh --workers {enough}` on one machine), or set "
        f"parallel.expert and parallel.tensor so that their product divides {world_size}, or, for a command that only "
        f"checks, give it --ranks {enough}"
    )


def _check_tensor(config: Config, node: Tuple[str, int]) -> None:
    """What a tensor-parallel group shares out, in equal parts; the group lies on one node, since it sums in every
    layer.
    """
    tensor, model = ("parallel.tensor", config.parallel.tensor), config.model
    _require_divides(tensor, node)
    _require_divides(tensor, ("model.num_heads", model.num_heads))
    name = "4 x model.hidden_size" if model.ffn_hidden_size is None else "model.ffn_hidden_size"
    _require_divides(tensor, (name, ffn_hidden_size(config)))


def _check_layout(config: Config) -> None:
    layout = config.moe.layout
    if layout is None:
        return
    ranks = ("moe.layout.world_size", layout.world_size)
    node = ("moe.layout.ranks_per_node", layout.ranks_per_node)
    _check_cluster("moe.layout", ranks, node, layout.expert, config.moe.num_experts)
    _require_divides(ranks, ("train.global_batch_size", config.train.global_batch_size))


def _check_batch(config: Config, world_size: int) -> None:
    rows = config.train.global_batch_size
    replicas = world_size // config.parallel.tensor
    _require_divides(
        ("the number of data-parallel ranks", replicas),
        ("train.global_batch_size", rows),
        f"set train.global_batch_size to a multiple of {replicas}, as in {-(-rows // replicas) * replicas}, or start a "
        f"number of ranks that divides it",
    )
    micro = config.train.micro_batch_size
    if micro is not None and rows % (replicas * micro):
        raise InputError(
            f"train.global_batch_size ({rows}) is not a multiple of train.micro_batch_size ({micro}) x "
            f"{replicas} data-parallel ranks = {replicas * micro}; expected a multiple, as in "
            f"{-(-rows // (replicas * micro)) * replicas * micro}, or a smaller train.micro_batch_size"
        )


def _check_schedule(config: Config) -> None:
    optimizer, train = config.optimizer, config.train
    if train.stop_after is not None and train.stop_after > train.steps:
        raise InputError(
            f"train.stop_after ({train.stop_after}) is beyond train.steps ({train.steps}); expected at most "
            f"{train.steps}"
        )
    if optimizer.experts != "device" and not has_experts(config):
        raise InputError(
            f"optimizer.experts is {optimizer.experts} in a network without experts (model.sparse_layers 0, "
            "model.sparse_query_layer false); expected device"
        )
    _check_profile(train.profile, train.stop_after or train.steps)
    if optimizer.schedule == "constant":
        if optimizer.decay_steps is not None:
            raise InputError(
                f"optimizer.decay_steps is {optimizer.decay_steps} with optimizer.schedule constant, "
                "which has no decay; expected null"
            )
        return
    name = "train.steps" if optimizer.decay_steps is None else "optimizer.decay_steps"
    decay = train.steps if optimizer.decay_steps is None else optimizer.decay_steps
    if optimizer.warmup_steps > decay:
        raise InputError(
            f"optimizer.warmup_steps ({optimizer.warmup_steps}) is beyond the end of decay, "
            f"{name} ({decay}); expected at most {decay}"
        )
    if optimizer.end_learning_rate > optimizer.learning_rate:
        raise InputError(
            f"optimizer.end_learning_rate ({optimizer.end_learning_rate}) exceeds "
            f"optimizer.learning_rate ({optimizer.learning_rate}); expected at most as much"
        )


def _check_profile(profile: Optional[Tuple[int, ...]], last: int) -> None:
    if profile is None:
        return
    if len(profile) != 2 or profile[0] > profile[1]:
        raise InputError(
            f"train.profile is {list(profile)}, expected the first and the last step to profile, as in [20, 24]"
        )
    if profile[1] > last:
        raise InputError(
            f"train.profile ({list(profile)}) goes beyond the last step ({last}); expected steps up to {last}"
        )


def _check_checkpoints(config: Config) -> None:
    options = config.checkpoint
    if options.keep_every and options.interval and options.keep_every % options.interval:
        raise InputError(
            f"checkpoint.keep_every ({options.keep_every}) is not a multiple of checkpoint.interval "
            f"({options.interval}), the steps at which there are checkpoints to keep; expected 0 or a multiple of "
            f"{options.interval}"
        )
    if options.keep_every and not options.interval:
        raise InputError(
            f"checkpoint.keep_every is {options.keep_every} with checkpoint.interval 0, which writes the last step "
            "alone; expected 0"
        )
    if options.initial is not None and options.resume not in (None, "auto"):
        raise InputError(
            f"checkpoint.initial is {options.initial} with checkpoint.resume {options.resume}, which goes on with a "
            "run; expected null, or checkpoint.resume null or auto"
        )


def _check_runtime(config: Config) -> None:
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
    check_ascend_settings(config, resolve_runtime(config).runtime.backend, has_experts(config))
    scale = runtime.loss_scale
    if scale.minimum > scale.initial:
        raise InputError(
            f"runtime.loss_scale.minimum ({scale.minimum}) exceeds "
            f"runtime.loss_scale.initial ({scale.initial}); expected at most as much"
        )
