"""Checks across keys: what each key's own type and limits cannot say. All raise `InputError` naming keys and values."""

from dataclasses import is_dataclass, replace

from locmoe_ops.dispatch.registry import KEYS as DISPATCHER_KEYS
from locmoe_ops.dispatch.registry import dispatcher_spec, names_of
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes, router_spec, routers
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.config.ascend import check_runtime
from pangu_sigma.config.check_chip import check_chip, check_gathered
from pangu_sigma.config.check_compile import check_compile
from pangu_sigma.config.check_data import check_data
from pangu_sigma.config.check_gradients import check_gradients
from pangu_sigma.config.check_parallel import check_parallel, require_divides
from pangu_sigma.config.check_run import (
    check_checkpoints,
    check_clusters,
    check_paths,
    check_recompute,
    check_schedule,
)
from pangu_sigma.config.derived import experts_per_group, has_experts, job_topology, num_sparse_layers, resolve_layout
from pangu_sigma.config.schema import BalanceConfig, CapacityConfig, Config, DispatchConfig
from pangu_sigma.config.strict_yaml import spelled


def validate(config: Config, world_size: int) -> None:
    """Checks a configuration for a job of `world_size` ranks.

    Raises:
        InputError: two keys, or a key and the number of ranks, do not fit; names both with their values.
    """
    require_divides(("model.num_heads", config.model.num_heads), ("model.hidden_size", config.model.hidden_size))
    _check_experts(config)
    _check_router(config)
    _check_known_routes(config)
    _check_dispatch(config)
    _check_capacity(config)
    check_parallel(config, world_size)
    _check_router_placement(config, world_size)
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
    _check_locality_bias(config)
    _check_locality_loss(config)
    start = getattr(router.own, "context_start_step", 0)
    if start and start >= config.train.steps:
        raise InputError(
            f"moe.router.{router.type}.context_start_step ({start}) is not before the last step, train.steps "
            f"({config.train.steps}): the context would never have a weight; expected an earlier step"
        )
    _check_balance(config)
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


# Keys of moe.router.balance that a kind makes use of.
_OF_BALANCE = {"none": (), "sign": ("rate",), "pid": ("rate", "proportional", "derivative"), "quantile": ("bins",)}


def _check_balance(config: Config) -> None:
    router, balance = config.moe.router, config.moe.router.balance
    what = f"moe.router.balance.kind {balance.kind}"
    for name in ("rate", "proportional", "derivative", "bins"):
        value, default = getattr(balance, name), getattr(BalanceConfig(), name)
        if name not in _OF_BALANCE[balance.kind] and value != default:
            raise InputError(
                f"moe.router.balance.{name} is {value} with {what}, which does not use it; expected {default}, its "
                "default"
            )
    if balance.kind == "none":
        return
    if router.balance_rate > 0.0:
        raise InputError(
            f"moe.router.balance_rate is {router.balance_rate} with {what}: both would move the same biases; expected "
            "0, or moe.router.balance.kind none"
        )
    needed = "quantile_balance" if balance.kind == "quantile" else "balance_rate"
    if needed not in router_spec(router.type).selection_biases:
        able = [name for name, one in routers().items() if needed in one.spec.selection_biases]
        raise InputError(
            f"{what} with moe.router.type {router.type}; expected none, or one of {', '.join(able)}, whose selection "
            "takes such a bias"
        )
    if balance.kind != "quantile":
        return
    if router.top_k >= experts_per_group(config):
        raise InputError(
            f"{what} with moe.router.top_k {router.top_k} of {experts_per_group(config)} experts of a group, where "
            "every token goes to all; expected none"
        )
    if router.locality_bias.kind == "margin":
        raise InputError(
            f"{what} with moe.router.locality_bias.kind margin, under which the best scores are not what is chosen; "
            "expected bias or none"
        )


def router_sizes(config: Config) -> RouterSizes:
    """What the router's declaration is told of the model."""
    moe, model = config.moe, config.model
    return RouterSizes(
        model.hidden_size,
        moe.num_experts,
        moe.num_groups,
        moe.router.top_k,
        num_sparse_layers(config),
        model.sequence_length,
        moe.scale_by_gate,
    )


def pin_router(config: Config, layout: Topology) -> Config:
    """`config` with what its router makes of the cluster `layout` written out, so that it picks the same experts in any
    other (see `RouterSpec.pin`).
    """
    if not has_experts(config):
        return config
    moe = config.moe
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)
    section = router_spec(moe.router.type).pin(moe.router.own, router_sizes(config), layout, placement)
    return replace(config, moe=replace(moe, router=replace(moe.router, **{moe.router.type: section})))


def _check_router_placement(config: Config, world_size: int) -> None:
    """Some routers need experts to lie on devices or nodes in a certain way."""
    if not has_experts(config):
        return
    moe, layout = config.moe, resolve_layout(config, job_topology(config, world_size))
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)
    router_spec(moe.router.type).check_placement(moe.router.own, router_sizes(config), layout, placement)


def _check_dispatch(config: Config) -> None:
    dispatch, capacity, parallel = config.moe.dispatch, config.moe.capacity, config.parallel
    spec, router = dispatcher_spec(dispatch.type), router_spec(config.moe.router.type)
    if router.expert_choice and not spec.has_slots:
        raise InputError(
            f"moe.dispatch.type is {dispatch.type} with moe.router.type {config.moe.router.type}, whose experts "
            "choose among "
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


def _check_locality_bias(config: Config) -> None:
    router, term = config.moe.router, config.moe.router.locality_bias
    if term.kind == "none":
        return
    kind = router_spec(router.type)
    if "locality_bias" not in kind.selection_biases:
        raise InputError(
            f"moe.router.locality_bias.kind is {term.kind} with moe.router.type {router.type}, which "
            f"{kind.selection_rule}; expected none"
        )
    if term.start_step >= config.train.steps:
        raise InputError(
            f"moe.router.locality_bias.start_step ({term.start_step}) is not before the last step, train.steps "
            f"({config.train.steps}): the term would keep its initial strength; expected an earlier step"
        )


def _check_locality_loss(config: Config) -> None:
    router, loss = config.moe.router, config.moe.router.locality_loss
    if loss.initial_weight is None:
        for name in ("start_step", "warmup_steps"):
            if getattr(loss, name):
                raise InputError(
                    f"moe.router.locality_loss.{name} is {getattr(loss, name)} with "
                    "moe.router.locality_loss.initial_weight null, which leaves mu as it is; expected 0"
                )
        return
    if not hasattr(router.own, "locality_loss_weight"):
        raise InputError(
            f"moe.router.locality_loss.initial_weight is {loss.initial_weight} with moe.router.type {router.type}, "
            "which has no locality loss; expected null"
        )
    if loss.start_step >= config.train.steps:
        raise InputError(
            f"moe.router.locality_loss.start_step ({loss.start_step}) is not before the last step, train.steps "
            f"({config.train.steps}): mu would keep its initial weight; expected an earlier step"
        )


def _check_known_routes(config: Config) -> None:
    """Rows can be placed by routes if these follow from token ids alone."""
    router, what = config.moe.router, "data.placement is known_routes"
    if config.data.placement != "known_routes":
        return
    if not has_experts(config):
        raise InputError(f"{what}, but no layer has experts (model.sparse_layers is 0); expected shuffled")
    if router_spec(router.type).map_of_ids(router.own) is None:
        raise InputError(
            f"{what} with moe.router.type {router.type}, whose routes are not known before the step; expected those "
            "that follow token ids: moe.router.type hash, or locmoe with moe.router.locmoe.gate_input code"
        )
    for key, found, expected in (
        ("top_k", router.top_k, 1),
        ("balance_rate", router.balance_rate, 0.0),
        ("balance.kind", router.balance.kind, "none"),
        ("locality_bias.kind", router.locality_bias.kind, "none"),
    ):
        if found != expected:
            raise InputError(
                f"moe.router.{key} is {found} with data.placement known_routes, where a token's id alone says its one "
                f"expert; expected {expected}"
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
