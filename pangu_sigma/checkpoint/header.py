"""What a checkpoint says of the run it belongs to, and whether another configuration may resume from there."""

from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.format import CheckpointHeader, DataState
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.state import StateEntry, scalars
from pangu_sigma.config.derived import layer_routers, router_keys
from pangu_sigma.config.load import to_dict
from pangu_sigma.config.renamed import with_new_names
from pangu_sigma.config.schema import Config, LogicalTopologyConfig, RouterConfig
from pangu_sigma.config.strict_yaml import spelled
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.domains import BY_DOMAIN, resolve_domain_groups
from pangu_sigma.data.manifest import find_tokenizer


def training_header(
    config: Config, layout: Topology, data: PreparedData, vocab_size: int, step: int, state: Sequence[StateEntry]
) -> CheckpointHeader:
    """The header of a checkpoint that training writes.

    Args:
        config: of the run.
        layout: the cluster that homes and locality referred to; with it, another job or one process can compute the
            same.
        data: what ids mean, and where rows come from.
        vocab_size: rows of the word table.
        step: optimizer steps done.
        state: whose single numbers the header holds.
    """
    given = LogicalTopologyConfig(layout.world_size, layout.ranks_per_node, layout.expert)
    resolved = replace(config, moe=replace(config.moe, logical_topology=given))
    return CheckpointHeader(
        step,
        "training",
        to_dict(resolved),
        data_state(data, vocab_size),
        sampler_state(config, data, step),
        random_state(config, step),
        scalars(state),
    )


def data_state(data: PreparedData, vocab_size: int) -> DataState:
    """What ids mean in a network whose word table has `vocab_size` rows."""
    manifest = data.manifest
    return DataState(manifest.tokenizer_sha256, vocab_size, tuple(data.domains), manifest.fingerprint)


_PLACED_BY = "rows placed by"  # of domain_by_node; checkpoints of before do not have it


def sampler_state(config: Config, data: PreparedData, step: int) -> Dict[str, Any]:
    """What the rows of the steps after `step` follow from, of `config` and `data`: the sampler holds nothing back."""
    state: Dict[str, Any] = {
        "next_step": step,
        "train.seed": config.train.seed,
        "train.global_batch_size": config.train.global_batch_size,
        "data.mixing": config.data.mixing,
        "data.placement": config.data.placement,
        "prepared data": data.manifest.fingerprint,
    }
    if config.data.weights is not None:
        state["data.weights"] = dict(sorted(config.data.weights.items()))
    if config.data.placement in BY_DOMAIN:
        state[_PLACED_BY] = "domain"
    if data.manifest.clusters is not None:  # which another version of their library may find otherwise
        state["clusters of documents"] = data.manifest.clusters.digest
    return state


def random_state(config: Config, step: int) -> Dict[str, Any]:
    """What dropout and jitter of the steps after `step` follow from: no generator has a state, and those of a step
    follow from its number, the seed of `config`, and the text of a row.
    """
    return {"next_step": step, "train.seed": config.train.seed}


def changes(reader: CheckpointReader, config: Config, data: PreparedData, layout: Topology) -> List[str]:
    """What makes a resumed run another one than it would have been, one line each; none where it continues as if never
    cut off.

    Args:
        reader: of the checkpoint that it resumes from.
        config, data: of the resumed run.
        layout: the cluster that its homes and locality refer to.
    """
    before, now = dict(reader.header.sampler), sampler_state(config, data, reader.header.step)
    same_rows = before.get("data.placement") != "domain_by_node" or _placed_by_group_alike(reader, layout.nodes)
    before.setdefault(_PLACED_BY, now.get(_PLACED_BY) if same_rows else "expert group")
    found = [
        f"{name} is {value}, was {before.get(name)}: other rows follow than would have"
        for name, value in now.items()
        if before.get(name) != value
    ]
    then = reader.config()
    if (then.optimizer.expert_state == "host_lazy") != (config.optimizer.expert_state == "host_lazy"):
        found.append(
            f"optimizer.expert_state is {config.optimizer.expert_state}, was {then.optimizer.expert_state}: idle "
            "experts are updated otherwise"
        )
    old = then.moe.logical_topology
    if old is not None and old != LogicalTopologyConfig(layout.world_size, layout.ranks_per_node, layout.expert):
        found.append(
            f"homes and locality refer to {layout.world_size} ranks on {layout.nodes} nodes, expert parallel "
            f"{layout.expert}; before to {old.world_size} on {old.world_size // old.ranks_per_node}, {old.expert} "
            "(moe.logical_topology can keep them)"
        )
    return found


def _placed_by_group_alike(reader: CheckpointReader, nodes: int) -> bool:
    """Whether rows placed by the expert group of their domain, as domain_by_node once did, are those that it places by
    the domain: each has a group of its own, and nodes divide domains, or domains nodes.
    """
    moe, domains = reader.config().moe, len(reader.header.data.domains)
    groups = resolve_domain_groups(moe.domain_groups, domains, moe.num_groups)
    return groups == tuple(range(moe.num_groups)) and 0 in (domains % nodes, nodes % domains)


# Keys of a router's own section that decide what its state means, or replace it; losses' weights, rates and the like
# may change.
_ROUTER_KEYS = (
    "gate",
    "gate_input",
    "blocks",
    "balance",
    "map",
    "weights",
    "score",
    "num_nodes",
    "num_devices",
    "partners",
    "table",
)


def check_same_model(reader: CheckpointReader, config: Config) -> None:
    """Weights mean something only in the network, and with the router, that they were trained in. Raises InputError.

    A router that replays a trace needs nothing of the one that was trained: its decisions are all in the trace.
    """
    then = reader.config()
    keys = [f"model.{field.name}" for field in fields(config.model) if not field.name.endswith("dropout")]
    experts = ("moe.num_experts", "moe.shared_experts", "moe.num_groups", "moe.domain_groups")
    for path in (*keys, *experts):
        _require_same(reader, path, attrgetter(path)(config), attrgetter(path)(then))
    if not (config.moe.routers or then.moe.routers):
        _check_same_router(reader, "moe.router", config.moe.router, then.moe.router)
        return
    for layer, (router, old) in enumerate(zip(layer_routers(config), layer_routers(then))):
        _check_same_router(reader, f"sparse layer {layer}: {router_keys(config)[layer]}", router, old)


def _check_same_router(reader: CheckpointReader, where: str, router: RouterConfig, old: RouterConfig) -> None:
    """The part of `check_same_model` that is about a layer's router, which is named at `where`."""
    if router.type == "replay":
        return
    _require_same(reader, f"{where}.type", router.type, old.type)
    if router.type == "hash":  # whose maps have so many experts an id
        _require_same(reader, "moe.router.top_k", router.top_k, old.top_k)
    for name in _ROUTER_KEYS:
        if hasattr(router.own, name) and hasattr(old.own, name):
            _require_same(reader, f"{where}.{router.type}.{name}", getattr(router.own, name), getattr(old.own, name))
    own = f"{where}.{router.type}"
    for place, name, state in (
        ("moe.router", "balance_rate", "biases"),
        (own, "centre_rate", "means"),
        (own, "context_weight", "context"),
    ):
        value, old_value = (getattr(one.own if place == own else one, name, 0.0) for one in (router, old))
        if (value > 0.0) != (old_value > 0.0):
            expected = "above 0 (1e-9 has next to no effect)"
            if old_value == 0.0:
                expected = f"0, for it has no {state} to continue with"
            _require_same(reader, f"{place}.{name}", value, old_value, expected)
    now, before = router.locality_bias.kind, old.locality_bias.kind
    _require_same(reader, "moe.router.balance.kind", router.balance.kind, old.balance.kind)
    if before == "none" or (now == "none" and (router.balance_rate > 0.0 or router.balance.kind != "none")):
        _require_same(
            reader,
            "moe.router.locality_bias.kind",
            now,
            before,
            "none (a run that is to begin without the term has moe.router.locality_bias.start_step)"
            if before == "none"
            else "bias or margin (moe.router.locality_bias.strength 0 turns the term off)",
        )


def _require_same(reader: CheckpointReader, path: str, now: Any, old: Any, expected: str = "the same") -> None:
    if now != old:
        raise InputError(
            f"{path} is {spelled(now)}, but {reader.folder} was trained with {spelled(old)}; expected {expected}"
        )


def differences(reader: CheckpointReader, config: Config) -> str:
    """The keys of the network and of its training by which `config` differs from the checkpoint's, for a message; ""
    where none does.
    """
    then, now = dict(_leaves(with_new_names(reader.header.config))), dict(_leaves(to_dict(config)))
    found = [
        f"{path} ({spelled(now[path])}, was {spelled(then[path])})"
        for path in now
        if path.startswith(("model.", "moe.", "optimizer.", "runtime.")) and path in then and then[path] != now[path]
    ]
    return f"; of what decides it these keys differ: {', '.join(found)}" if found else ""


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_same_ids(reader: CheckpointReader, data: PreparedData) -> None:
    """Rows of the word table mean something only with the tokenizer, and groups with the domains, that they were
    trained with.

    Raises InputError.
    """
    then = reader.header.data
    if then.tokenizer_sha256 not in (None, data.manifest.tokenizer_sha256):
        own = find_tokenizer(Path(reader.folder))
        again = (
            "to resume, prepare the data with the checkpoint's: pangu-sigma prepare CONFIG --set "
            f"data.prepare.tokenizer={own}, and another data.path where this one is still needed"
            if own is not None
            else "expected the data it was trained on, or data prepared with their tokenizer (data.prepare.tokenizer), "
            "which a checkpoint of this age does not hold"
        )
        raise InputError(
            f"data.path: {data.path} has another tokenizer than {reader.folder} was trained with (sha256 "
            f"{data.manifest.tokenizer_sha256[:12]}, expected {str(then.tokenizer_sha256)[:12]}); its ids mean other "
            f"text; {again}"
        )
    if then.domains != tuple(data.domains):
        raise InputError(
            f"data.path: {data.path} has the domains {', '.join(data.domains)}, but {reader.folder} was trained with "
            f"{', '.join(then.domains)}; expected the same in the same order"
        )
