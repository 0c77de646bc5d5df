"""What follows from the keys of a configuration, each rule once. Needs no MindSpore.

Where a number of ranks plays a part, `data_ranks` is that of data-parallel ranks: those that read rows of their own
(`Topology.data`), a tensor-parallel group being one.
"""

from dataclasses import replace
from typing import Any, Dict, List, Tuple

from locmoe_ops.router_registry import BALANCE_BIASES, RouterCost, RouterSizes, router_spec
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.config.schema import (
    BalanceConfig,
    Config,
    LayerRouterConfig,
    LocalityBiasConfig,
    LocalityLossConfig,
    RouterConfig,
)


def job_topology(config: Config, world_size: int) -> Topology:
    """Which of `world_size` ranks sits where: all on one node unless the configuration says otherwise."""
    parallel = config.parallel
    return Topology(world_size, parallel.ranks_per_node or world_size, parallel.expert, parallel.tensor)


def resolve_layout(config: Config, topology: Topology) -> Topology:
    """`moe.logical_topology` where given, else the topology of the job, in which a tensor-parallel group is one place:
    its ranks hold the same rows.
    """
    given = config.moe.logical_topology
    if given is not None:
        return Topology(given.world_size, given.ranks_per_node, given.expert)
    tensor = topology.tensor
    return topology if tensor == 1 else Topology(topology.data, topology.ranks_per_node // tensor, topology.expert)


def ffn_hidden_size(config: Config) -> int:
    """f: inner width of a dense feed-forward network and of an expert, over all ranks of a tensor-parallel group."""
    return config.model.ffn_hidden_size or 4 * config.model.hidden_size


def shared_ffn_hidden_size(config: Config) -> int:
    """Inner width of the shared experts of a sparse layer, all together, over all ranks of a tensor-parallel group; 0
    where there are none.
    """
    return config.moe.shared_experts * ffn_hidden_size(config)


def num_blocks(config: Config) -> int:
    """Decoder blocks below the query layer."""
    return config.model.dense_layers + config.model.sparse_layers


def num_sparse_layers(config: Config) -> int:
    """Layers with experts, the query layer's included."""
    return config.model.sparse_layers + config.model.sparse_query_layer


def recomputed_parts(config: Config) -> Tuple[str, ...]:
    """What the backward pass computes anew of each layer, bottom up, the query layer last: `none` of it, its
    `attention`, or `all` (see `train.recompute`).
    """
    asked, model = config.train.recompute, config.model
    sparse = (False,) * model.dense_layers + (True,) * model.sparse_layers + (model.sparse_query_layer,)
    if isinstance(asked, int):
        return tuple("all" if index < asked else "none" for index in range(len(sparse)))
    if asked == "sparse":
        return tuple("all" if with_experts else "none" for with_experts in sparse)
    return (asked,) * len(sparse)


def has_experts(config: Config) -> bool:
    """True if any layer is sparse; without one, `moe` settings are of no consequence."""
    return num_sparse_layers(config) > 0


def router_keys(config: Config) -> Tuple[str, ...]:
    """Where each sparse layer's router is named, bottom up: `moe.router`, or `moe.routers[i]`. What an entry names that
    is no sparse layer is left out.
    """
    layers = num_sparse_layers(config)
    found = ["moe.router"] * layers
    for index, entry in enumerate(config.moe.routers):
        for layer in entry.layers:
            if layer < layers:
                found[layer] = f"moe.routers[{index}]"
    return tuple(found)


def layer_routers(config: Config) -> Tuple[RouterConfig, ...]:
    """The keys of each sparse layer's router, bottom up: `moe.router`, or with type and section of an entry of
    `moe.routers`. Where there are entries, keys that routers share are off in layers whose routers do not take them.
    """
    moe = config.moe
    if not moe.routers:
        return (moe.router,) * num_sparse_layers(config)
    by_key = {"moe.router": _as_taken(moe.router)}
    for index, entry in enumerate(moe.routers):
        router = _of_entry(moe.router, entry)
        if not entry.locality_bias:
            router = replace(router, locality_bias=LocalityBiasConfig())
        by_key[f"moe.routers[{index}]"] = _as_taken(router)
    return tuple(by_key[key] for key in router_keys(config))


def _of_entry(shared: RouterConfig, entry: LayerRouterConfig) -> RouterConfig:
    """`shared`, of `moe.router`, with the type and the section of an `entry` of `moe.routers`."""
    name = entry.type or shared.type
    section = getattr(entry, name)
    changes: Dict[str, Any] = {"type": name} if section is None else {"type": name, name: section}
    return replace(shared, **changes)


def layer_router(config: Config, layer: int) -> RouterConfig:
    """The keys of the router of one sparse `layer`, see `layer_routers`."""
    return layer_routers(config)[layer] if config.moe.routers else config.moe.router


def _as_taken(router: RouterConfig) -> RouterConfig:
    """`router` without the shared keys that it does not take."""
    biases = router_spec(router.type).selection_biases
    changes: Dict[str, Any] = {}
    if "locality_bias" not in biases:
        changes["locality_bias"] = LocalityBiasConfig()
    if "balance_rate" not in biases:
        changes["balance_rate"] = 0.0
    if BALANCE_BIASES[router.balance.kind] not in (None, *biases):
        changes["balance"] = BalanceConfig()
    if not hasattr(router.own, "locality_loss_weight"):
        changes["locality_loss"] = LocalityLossConfig()
    return replace(router, **changes)


def router_sizes(config: Config) -> RouterSizes:
    """What routers' declarations are told of the model."""
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


def expert_placement(config: Config, layout: Topology) -> ExpertPlacement:
    """Who holds which expert in the cluster `layout`."""
    moe = config.moe
    return ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)


def pin_routers(config: Config, layout: Topology) -> Config:
    """`config` with what its routers make of the cluster `layout` written out, so that they pick the same experts in
    any other (see `RouterSpec.pin`).
    """
    moe, sizes, used = config.moe, router_sizes(config), router_keys(config)
    if not has_experts(config):
        return config
    placement = expert_placement(config, layout)

    def pinned(router: RouterConfig) -> Any:
        return router_spec(router.type).pin(router.own, sizes, layout, placement)

    entries = tuple(
        replace(entry, **{(entry.type or moe.router.type): pinned(_of_entry(moe.router, entry))})
        for entry in moe.routers
    )
    shared = replace(moe.router, **{moe.router.type: pinned(moe.router)}) if "moe.router" in used else moe.router
    return replace(config, moe=replace(moe, router=shared, routers=entries))


def router_costs(config: Config) -> Tuple[RouterCost, ...]:
    """What each sparse layer's router costs, bottom up, as their files declare."""
    sizes = router_sizes(config)
    return tuple(router_spec(one.type).cost(one.own, sizes) for one in layer_routers(config))


def router_names(config: Config) -> str:
    """The routers of the sparse layers, for people: one name, or names with their layers, as in `hash (0-2), switch
    (3, 5)`.
    """
    if not config.moe.routers or not has_experts(config):
        return config.moe.router.type
    of_type: Dict[str, List[int]] = {}
    for layer, router in enumerate(layer_routers(config)):
        of_type.setdefault(router.type, []).append(layer)
    if len(of_type) == 1:
        return next(iter(of_type))
    return ", ".join(f"{name} ({_ranges(layers)})" for name, layers in of_type.items())


def _ranges(numbers: List[int]) -> str:
    """Ascending `numbers` as in `0-2, 5`."""
    parts: List[List[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def experts_per_group(config: Config) -> int:
    """Experts that a token may be sent to: those of its domain's group."""
    return config.moe.num_experts // config.moe.num_groups


def num_word_tables(config: Config, domains: int) -> int:
    """Word tables of a network whose data has so many `domains`."""
    return domains if config.model.domain_embeddings else 1


def micro_batch_sequences(config: Config, data_ranks: int) -> int:
    """Sequences of a micro-batch on each rank; 1 where there are fewer sequences in a step than `data_ranks`."""
    return config.train.micro_batch_size or max(1, config.train.global_batch_size // data_ranks)


def micro_batches_per_step(config: Config, data_ranks: int) -> int:
    """Micro-batches of a rank in an optimizer step."""
    return config.train.global_batch_size // (micro_batch_sequences(config, data_ranks) * data_ranks)


def tokens_per_step(config: Config) -> int:
    """Tokens of an optimizer step, over all ranks."""
    return config.train.global_batch_size * config.model.sequence_length


def last_step(config: Config) -> int:
    """After which a run ends, if nothing else ends it."""
    return min(config.train.steps, config.train.stop_after or config.train.steps)
