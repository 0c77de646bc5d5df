"""`pangu-sigma ckpt export-map`: the maps from token ids to experts of a model, in a file that others can read.

Of a checkpoint or run they are those that it was trained with; of a configuration whose run has written no checkpoint
those that it will draw, from its prepared data and its seed. For the format see `pangu_sigma.data.map_file`.
"""

from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import router_spec
from locmoe_ops.routers.hash_maps import NodesOfIds, experts_of_codes, layer_hash_tables
from locmoe_ops.routers.specs.hash import FROM_FILE
from locmoe_ops.topology import ExpertPlacement, Topology, nodes_of_experts
from pangu_sigma.checkpoint.folders import finished
from pangu_sigma.checkpoint.locate import FILE, checkpoints_named, locate
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.rewrite import newest
from pangu_sigma.config.check_routers import check_routers
from pangu_sigma.config.derived import layer_routers, router_names
from pangu_sigma.config.load import load_config
from pangu_sigma.config.schema import Config
from pangu_sigma.data.cooccurrence import nodes_of_ids
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.map_file import FORMAT, MapSizes, maps_to_bytes, read_map
from pangu_sigma.data.vocabulary import vocabulary
from pangu_sigma.runtime.files import write_output
from pangu_sigma.runtime.run_folder import CHECKPOINTS
from pangu_sigma.runtime.text_table import TableColumn, text_table


class FoundMaps(NamedTuple):
    """Maps of a model.

    Attributes:
        config: of the model. sizes: of the maps.
        by_layer: sparse layer -> <int>[G, V] or [G, V, k], experts within the group.
        origin: what they are of, for the file. counts: <int64>[G, V] of the training text, where it is known.
    """

    config: Config
    sizes: MapSizes
    by_layer: Dict[int, np.ndarray]
    origin: Dict[str, str]
    counts: Optional[np.ndarray] = None


def export_map(source: str, target: str) -> None:
    """Writes the file `target` and prints how even the maps are.

    Args:
        source: a configuration, or a checkpoint or a run, whose newest is taken. target: the file.

    Raises InputError: no checkpoint, a damaged one, no layer whose routes follow from token ids, no prepared data where
    maps are to be drawn; or the file cannot be written.
    """
    place, run = locate(source), checkpoints_named(source)
    not_yet = place.kind == FILE and not finished(Path(run) / CHECKPOINTS)
    found = _drawn(load_config(place.path)) if not_yet else _trained(run)
    if not found.by_layer:
        raise InputError(
            f"{source}: no layer's routes follow from token ids (router {router_names(found.config)}); expected hash, "
            "or locmoe with gate_input code, in moe.router or moe.routers"
        )
    content = maps_to_bytes(found.by_layer, found.sizes, found.origin)
    write_output("TARGET", Path(target), content, (FORMAT.encode(),))
    head = f"{target}: maps of {len(found.by_layer)} of {len(layer_routers(found.config))} sparse layers"
    print("\n".join([head, "", *_table(found)]))


def _kinds(config: Config) -> Dict[int, str]:
    """Sparse layers whose routes follow from token ids -> the kind of their maps."""
    kinds = {layer: router_spec(one.type).map_of_ids(one.own) for layer, one in enumerate(layer_routers(config))}
    return {layer: kind for layer, kind in kinds.items() if kind is not None}


def _sizes(config: Config, vocab_size: int) -> MapSizes:
    moe = config.moe
    return MapSizes(moe.num_experts, moe.num_groups, moe.router.top_k, vocab_size)


def _trained(checkpoint: str) -> FoundMaps:
    with CheckpointReader.open(newest(checkpoint)) as reader:
        config, maps = reader.config(), {}
        for layer in _kinds(config):
            block = config.model.dense_layers + layer
            name = f"blocks.{block}" if layer < config.model.sparse_layers else "query_layer"
            router = f"{name}.feed_forward.routing.router"
            if f"{router}.table" in reader.manifest.tensors:
                maps[layer] = reader.read(f"{router}.table")
            else:
                maps[layer] = experts_of_codes(reader.read(f"{router}.gate.codes"), config.moe.router.top_k)
        header = reader.header
        origin = {"origin": f"step {header.step} of {reader.folder}", "tokenizer": str(header.data.tokenizer_sha256)}
        return FoundMaps(config, _sizes(config, header.data.vocab_size), maps, origin)


def _drawn(config: Config) -> FoundMaps:
    """As `locmoe_ops.routers.base.RouterContext.hash_tables` draws them for a run, without a network."""
    check_routers(config)
    data = PreparedData.open(config.data.path)
    words, moe, layout = vocabulary(config, data), config.moe, config.moe.logical_topology
    cluster = None if layout is None else Topology(layout.world_size, layout.ranks_per_node, layout.expert)
    ids, sizes = nodes_of_ids(config, data, words.vocab_size, cluster), _sizes(config, words.vocab_size)
    nodes = None
    if ids is not None and cluster is not None:
        placement = ExpertPlacement(moe.num_experts, moe.num_groups, cluster.expert, moe.expert_placement)
        nodes = NodesOfIds(ids, nodes_of_experts(cluster, placement))
    maps, routers = {}, layer_routers(config)
    for layer, kind in _kinds(config).items():
        if kind == FROM_FILE:
            maps[layer] = read_map(routers[layer].own.map, layer, sizes)
            continue
        top_k = moe.router.top_k
        if routers[layer].type != "hash" and top_k > 1:  # codes are drawn around one expert, which says no second
            raise InputError(
                f"moe.router.top_k is {top_k} with router {routers[layer].type} in sparse layer {layer}, whose codes "
                "say a token's further experts; expected a checkpoint, which holds them"
            )
        per_group, seed = moe.num_experts // moe.num_groups, config.train.seed
        maps[layer] = layer_hash_tables(
            kind, moe.num_groups, per_group, words.vocab_size, layer, seed, words.counts, nodes, top_k
        )
    origin = {"origin": f"drawn with seed {config.train.seed}", "tokenizer": str(data.manifest.tokenizer_sha256)}
    return FoundMaps(config, sizes, maps, origin, words.counts)


def _table(found: FoundMaps) -> List[str]:
    """How even the maps are, and how unlike: a line a layer."""
    sizes, rows, below = found.sizes, [], None
    per_group = sizes.num_experts // sizes.num_groups
    for layer, table in found.by_layer.items():
        experts = table.reshape(sizes.num_groups, sizes.vocab_size, -1)  # (G, V, k)
        shared = "" if below is None else f"{_shared(experts, below):.3f}"
        by_text = "" if found.counts is None else f"{_busiest(experts, found.counts, per_group):.3f}"
        rows.append((str(layer), f"{_busiest(experts, np.ones(experts.shape[:2]), per_group):.3f}", by_text, shared))
        below = experts
    titles = ("ids: busiest / mean", "text: busiest / mean", "as in the line above")
    lines = text_table([TableColumn("layer", "<"), *map(TableColumn, titles)], rows)
    by_chance = f"two maps that know nothing of each other share {sizes.top_k / per_group:.3f} of an id's experts"
    return [*lines, "", by_chance]


def _busiest(experts: np.ndarray, counts: np.ndarray, per_group: int) -> float:
    """Load of the busiest expert over the mean of its group, of the group where that is largest.

    Args:
        experts: <int>[G, V, k]. counts: [G, V], of ids. per_group: n.
    """
    most = 1.0
    for of_group, times in zip(experts, counts):
        loads = np.bincount(of_group.reshape(-1), np.repeat(times, of_group.shape[1]), per_group)
        most = max(most, float(loads.max() / loads.mean())) if loads.any() else most
    return most


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """Share of an id's experts <int>[G, V, k] in `one` map that it has in the `other`, too."""
    return float((one[..., :, None] == other[..., None, :]).any(-1).mean())
