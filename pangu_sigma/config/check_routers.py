"""Checks of the routers, of all layers and of single ones. All raise `InputError` naming keys and values."""

from contextlib import contextmanager
from operator import attrgetter
from typing import Dict, Iterator, Optional

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import BALANCE_BIASES, router_spec, routers
from pangu_sigma.config.derived import (
    expert_placement,
    experts_per_group,
    has_experts,
    job_topology,
    layer_routers,
    num_sparse_layers,
    resolve_layout,
    router_keys,
    router_names,
    router_sizes,
)
from pangu_sigma.config.schema import BalanceConfig, Config, RouterConfig
from pangu_sigma.config.strict_yaml import spelled


def check_routers(config: Config) -> None:
    """Raises InputError where routers do not fit the model, each other, or the keys that all share."""
    if not has_experts(config):
        return
    _check_entries(config)
    for where, router in routers_in_use(config).items():
        _check_router(config, where, router)
    _check_shared_keys(config)


def _check_entries(config: Config) -> None:
    """Raises InputError where an entry of `moe.routers` names no layer, one that is not there, or another's, or has a
    section that is not its router's.
    """
    layers = num_sparse_layers(config)
    named: Dict[int, str] = {}
    for index, entry in enumerate(config.moe.routers):
        where = f"moe.routers[{index}]"
        if not entry.layers:
            raise InputError(f"{where}.layers is empty; expected sparse layers, from 0 to {layers - 1}, as in [0, 1]")
        for layer in entry.layers:
            if layer >= layers:
                raise InputError(
                    f"{where}.layers has {layer}; expected sparse layers, from 0 to {layers - 1} (model.sparse_layers "
                    f"is {config.model.sparse_layers}"
                    f"{', and the query layer is sparse' if config.model.sparse_query_layer else ''})"
                )
            if layer in named:
                also = "twice" if named[layer] == where else f"as {named[layer]} has"
                raise InputError(f"{where}.layers has {layer} {also}; expected one entry a layer")
            named[layer] = where
        name = entry.type or config.moe.router.type
        for section in (one for one in routers() if one != name and getattr(entry, one, None) is not None):
            raise InputError(
                f"{where}.{section} is a section of a router that {where}.type, {name}, does not name; expected none, "
                f"or {where}.{name}"
            )


def routers_in_use(config: Config) -> Dict[str, RouterConfig]:
    """Where a router is named -> its keys, each once."""
    return dict(zip(router_keys(config), layer_routers(config)))


def _check_router(config: Config, where: str, router: RouterConfig) -> None:
    """Raises InputError where a router, named by the key `where`, does not fit the model or the keys that all share."""
    kind, experts = router_spec(router.type), experts_per_group(config)
    if kind.top_k is not None and router.top_k != kind.top_k:
        raise InputError(
            f"moe.router.top_k is {router.top_k} with {where}.type {router.type}, which sends a token to "
            f"{kind.top_k} expert{'s' if kind.top_k > 1 else ''}; expected {kind.top_k}"
        )
    if kind.expert_choice and config.moe.dispatch.drop_priority != "weight":
        raise InputError(
            f"moe.dispatch.drop_priority is {config.moe.dispatch.drop_priority} with {where}.type {router.type}, "
            "whose experts choose the tokens of largest weight; expected weight"
        )
    _check_locality_bias(config, where, router)
    _check_locality_loss(config, where, router)
    late = getattr(router.own, "expert_choice_start_step", None)
    if late is not None and late >= config.train.steps:
        raise InputError(
            f"{where}.{router.type}.expert_choice_start_step ({late}) is not before the last step, train.steps "
            f"({config.train.steps}): experts would never choose; expected an earlier step, or null"
        )
    start = getattr(router.own, "context_start_step", 0)
    if start and start >= config.train.steps:
        raise InputError(
            f"{where}.{router.type}.context_start_step ({start}) is not before the last step, train.steps "
            f"({config.train.steps}): the context would never have a weight; expected an earlier step"
        )
    _check_balance(config, where, router)
    if router.balance_rate > 0.0 and "balance_rate" not in kind.selection_biases:
        balanced = [name for name, one in routers().items() if "balance_rate" in one.spec.selection_biases]
        raise InputError(
            f"moe.router.balance_rate is {router.balance_rate} with {where}.type {router.type}; expected 0, or one "
            f"of {', '.join(balanced)}, whose selection takes a bias"
        )
    if router.top_k > experts:
        raise InputError(
            f"moe.router.top_k ({router.top_k}) exceeds the {experts} experts of a group "
            f"(moe.num_experts {config.moe.num_experts} / moe.num_groups {config.moe.num_groups}); expected at most "
            f"{experts}"
        )
    with _section_at(where, router):
        kind.check(router.own, router_sizes(config))


def check_router_placement(config: Config, world_size: int) -> None:
    """Raises InputError where experts do not lie on the devices or nodes of a job of `world_size` ranks as a router
    needs it.
    """
    if not has_experts(config):
        return
    layout = resolve_layout(config, job_topology(config, world_size))
    placement, sizes = expert_placement(config, layout), router_sizes(config)
    for where, router in routers_in_use(config).items():
        with _section_at(where, router):
            router_spec(router.type).check_placement(router.own, sizes, layout, placement)


@contextmanager
def _section_at(where: str, router: RouterConfig) -> Iterator[None]:
    """Has errors name the section of a `router` by the key `where`; declarations know it by its place in moe.router."""
    try:
        yield
    except InputError as error:
        own = f"moe.router.{router.type}."
        raise InputError(str(error).replace(own, f"{where}.{router.type}.")) from None


# Keys of moe.router.balance that a kind makes use of.
_OF_BALANCE = {"none": (), "sign": ("rate",), "pid": ("rate", "proportional", "derivative"), "quantile": ("bins",)}


def _check_balance(config: Config, where: str, router: RouterConfig) -> None:
    balance, experts = router.balance, experts_per_group(config)
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
    needed = BALANCE_BIASES[balance.kind]
    if needed not in router_spec(router.type).selection_biases:
        able = [name for name, one in routers().items() if needed in one.spec.selection_biases]
        raise InputError(
            f"{what} with {where}.type {router.type}; expected none, or one of {', '.join(able)}, whose selection "
            "takes such a bias"
        )
    if balance.kind != "quantile":
        return
    if router.top_k >= experts:
        raise InputError(
            f"{what} with moe.router.top_k {router.top_k} of {experts} experts of a group, where every token goes to "
            "all; expected none"
        )
    if router.locality_bias.kind == "margin":
        raise InputError(
            f"{what} with moe.router.locality_bias.kind margin, under which the best scores are not what is chosen; "
            "expected bias or none"
        )


def _check_shared_keys(config: Config) -> None:
    """Raises InputError where layers have routers of their own, and a key that all share is taken by none of them, or
    they do not agree on a value that the run has once.
    """
    shared, found = config.moe.router, layer_routers(config)
    if not config.moe.routers:
        return
    for key, given, taken in (
        ("balance_rate", shared.balance_rate > 0.0, any(one.balance_rate > 0.0 for one in found)),
        ("balance.kind", shared.balance.kind != "none", any(one.balance.kind != "none" for one in found)),
        ("locality_bias.kind", shared.locality_bias.kind != "none", any(_has_bias(one) for one in found)),
        (
            "locality_loss.initial_weight",
            shared.locality_loss.initial_weight is not None,
            any(one.locality_loss.initial_weight is not None for one in found),
        ),
    ):
        if given and not taken:
            value = spelled(attrgetter(key)(shared))
            raise InputError(
                f"moe.router.{key} is {value}, which the router of no layer takes ({router_names(config)}); expected "
                f"{spelled(attrgetter(key)(type(shared)()))}"
            )
    alike = ["centre_rate", "context_weight", "context_start_step", "context_warmup_steps"]
    if shared.locality_loss.initial_weight is not None:
        alike.append("locality_loss_weight")
    for key in alike:
        _require_alike(config, key)
    _require_alike(config, "expert_choice_start_step", off=None)


def _has_bias(router: RouterConfig) -> bool:
    return router.locality_bias.kind != "none"


def _require_alike(config: Config, key: str, off: Optional[int] = 0) -> None:
    """Raises InputError where two layers' routers have different values other than `off` of the `key` in their
    sections.
    """
    values = {
        f"{where}.{router.type}.{key}": getattr(router.own, key, off)
        for where, router in routers_in_use(config).items()
        if getattr(router.own, key, off) != off
    }
    (first, value), *others = values.items() or [("", 0)]
    for other, found in others:
        if found != value:
            raise InputError(
                f"{other} is {found} and {first} {value}; expected one value, which all such layers follow"
            )


def _check_locality_bias(config: Config, where: str, router: RouterConfig) -> None:
    term = router.locality_bias
    if term.kind == "none":
        return
    kind = router_spec(router.type)
    if "locality_bias" not in kind.selection_biases:
        raise InputError(
            f"moe.router.locality_bias.kind is {term.kind} with {where}.type {router.type}, which "
            f"{kind.selection_rule}; expected none"
        )
    if term.start_step >= config.train.steps:
        raise InputError(
            f"moe.router.locality_bias.start_step ({term.start_step}) is not before the last step, train.steps "
            f"({config.train.steps}): the term would keep its initial strength; expected an earlier step"
        )


def _check_locality_loss(config: Config, where: str, router: RouterConfig) -> None:
    loss = router.locality_loss
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
            f"moe.router.locality_loss.initial_weight is {loss.initial_weight} with {where}.type {router.type}, "
            "which has no locality loss; expected null"
        )
    if loss.start_step >= config.train.steps:
        raise InputError(
            f"moe.router.locality_loss.start_step ({loss.start_step}) is not before the last step, train.steps "
            f"({config.train.steps}): mu would keep its initial weight; expected an earlier step"
        )


def check_known_routes(config: Config) -> None:
    """Rows can be placed by the layers whose routes follow from token ids alone. Raises InputError."""
    what = "data.placement is known_routes"
    if config.data.placement != "known_routes":
        return
    if not has_experts(config):
        raise InputError(f"{what}, but no layer has experts (model.sparse_layers is 0); expected shuffled")
    known = [one for one in layer_routers(config) if router_spec(one.type).map_of_ids(one.own) is not None]
    if not known:
        raise InputError(
            f"{what} with moe.router.type {router_names(config)}, whose routes are not known before the step; expected "
            "those that follow token ids: moe.router.type hash, or locmoe with moe.router.locmoe.gate_input code"
        )
    for router in known:
        for key, found, expected in (
            ("balance_rate", router.balance_rate, 0.0),
            ("balance.kind", router.balance.kind, "none"),
            ("locality_bias.kind", router.locality_bias.kind, "none"),
        ):
            if found != expected:
                raise InputError(
                    f"moe.router.{key} is {found} with data.placement known_routes, where a token's id alone says its "
                    f"experts; expected {expected}"
                )
