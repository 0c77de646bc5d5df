"""Checks across keys: what each key's own type and limits cannot say. All raise `InputError` naming keys and values."""

from dataclasses import is_dataclass

from locmoe_ops.dispatch.registry import KEYS as DISPATCHER_KEYS
from locmoe_ops.dispatch.registry import dispatcher_spec, names_of
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import router_spec
from pangu_sigma.config.ascend import check_runtime
from pangu_sigma.config.check_chip import check_chip, check_gathered
from pangu_sigma.config.check_compile import check_compile
from pangu_sigma.config.check_data import check_data
from pangu_sigma.config.check_gradients import check_gradients
from pangu_sigma.config.check_parallel import check_parallel, require_divides
from pangu_sigma.config.check_routers import check_known_routes, check_router_placement, check_routers, routers_in_use
from pangu_sigma.config.check_run import (
    check_checkpoints,
    check_clusters,
    check_paths,
    check_recompute,
    check_schedule,
)
from pangu_sigma.config.derived import has_experts, job_topology
from pangu_sigma.config.schema import CapacityConfig, Config, DispatchConfig
from pangu_sigma.config.strict_yaml import spelled


def validate(config: Config, world_size: int) -> None:
    """Checks a configuration for a job of `world_size` ranks.

    Raises:
        InputError: two keys, or a key and the number of ranks, do not fit; names both with their values.
    """
    require_divides(("model.num_heads", config.model.num_heads), ("model.hidden_size", config.model.hidden_size))
    _check_experts(config)
    check_routers(config)
    check_known_routes(config)
    _check_dispatch(config)
    _check_capacity(config)
    check_parallel(config, world_size)
    check_router_placement(config, world_size)
    _check_measured_share(config, world_size)
    check_schedule(config)
    check_recompute(config)
    check_checkpoints(config)
    check_data(config)
    check_clusters(config.data.prepare.clusters)
    check_runtime(config)
    check_compile(config, world_size)
    check_gathered(config, job_topology(config, world_size))
    check_gradients(config, job_topology(config, world_size))
    check_chip(config, world_size)
    check_paths(config)


def _check_experts(config: Config) -> None:
    moe = config.moe
    require_divides(("moe.num_groups", moe.num_groups), ("moe.num_experts", moe.num_experts))
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


def _check_dispatch(config: Config) -> None:
    dispatch, capacity, parallel = config.moe.dispatch, config.moe.capacity, config.parallel
    spec, named = dispatcher_spec(dispatch.type), routers_in_use(config) or {"moe.router": config.moe.router}
    for where, router in named.items():
        if router_spec(router.type).expert_choice and not spec.has_slots:
            raise InputError(
                f"moe.dispatch.type is {dispatch.type} with {where}.type {router.type}, whose experts choose among "
                f"the tokens that want their slots; expected {' or '.join(names_of(lambda one: one.has_slots))}"
            )
    for key in (key for key in DISPATCHER_KEYS if key not in spec.keys):
        section, _, name = key.partition(".")
        value, default = getattr(getattr(config.moe, section), name), getattr(_MOE_DEFAULTS[section], name)
        if value != default:
            shown = "a section" if is_dataclass(value) else spelled(value)
            raise InputError(
                f"moe.{key} is {shown} with moe.dispatch.type {dispatch.type}, "
                f"{spec.reasons.get(key, 'which does not use it')}; expected {spelled(default)}"
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
    for where, router in named.items():
        if dispatch.overflow == "repick" and not router_spec(router.type).second_experts:
            raise InputError(
                f"moe.dispatch.overflow is repick with {where}.type {router.type}, which has no weight for "
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
    for where, router in routers_in_use(config).items():
        if capacity.mode != "factor" and not router_spec(router.type).gate_weights:
            raise InputError(
                f"moe.capacity.mode is {capacity.mode} with {where}.type {router.type}, which has no gate "
                "weights to measure cosines with; expected factor"
            )
    if config.moe.evaluation_rules == "none":
        _require_default("evaluation_factor", capacity, default, "moe.evaluation_rules none")
    if capacity.measured_share is not None and capacity.local_share is not None:
        raise InputError(
            f"moe.capacity.local_share is {capacity.local_share} with moe.capacity.measured_share, which measures it; "
            "expected null"
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


def _check_measured_share(config: Config, world_size: int) -> None:
    """What leaves a node of the layout is what the tier between the job's nodes must carry. One node has one tier."""
    layout, job = config.moe.logical_topology, job_topology(config, world_size)
    if config.moe.capacity.measured_share is None or layout is None or job.nodes == 1:
        return
    if (layout.world_size, layout.ranks_per_node) != (job.data, job.ranks_per_node // job.tensor):
        raise InputError(
            f"moe.capacity.measured_share: measured for moe.logical_topology of {layout.world_size} ranks, "
            f"{layout.ranks_per_node} a node, in a job of {job.data} data-parallel ranks, "
            f"{job.ranks_per_node // job.tensor} a node; expected moe.logical_topology null, or the job's own"
        )
