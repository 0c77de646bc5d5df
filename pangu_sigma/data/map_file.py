"""Files of maps from token ids to experts, which this program writes and reads, and others can (docs/hash_maps.md).

A file is a safetensors file. A tensor `layers.I.groups.J.tid2eid` <int32 or int64>[V, k] holds, for every token id of
expert group J in sparse layer I, the global ids of its k experts, different ones. A file for one group may leave the
group out of the names, as DeepSeek-V4's checkpoints do (`layers.I.ffn.gate.tid2eid`). Metadata say what it was made
from; nothing of them is needed to read it.
"""

import re
from typing import Dict, Mapping, NamedTuple

import numpy as np

from locmoe_ops.errors import InputError

FORMAT = "pangu-sigma-maps/1"
_NAME = re.compile(r"(?:.*\.)?layers\.(\d+)\.(?:groups\.(\d+)\.|(?:.*\.)?)tid2eid")
_EXPECTED = "a safetensors file with tensors layers.I.groups.J.tid2eid (docs/hash_maps.md)"


class MapSizes(NamedTuple):
    """What a layer's map must fit: E experts in G groups, k experts an id, V ids."""

    num_experts: int
    num_groups: int
    top_k: int
    vocab_size: int


def maps_to_bytes(maps: Mapping[int, np.ndarray], sizes: MapSizes, origin: Mapping[str, str]) -> bytes:
    """The content of a file.

    Args:
        maps: by sparse layer <int>[G, V] or [G, V, k], experts within the group. sizes: of all of them.
        origin: what they were made from, for the metadata.
    """
    from safetensors.numpy import save

    tensors = {}
    for layer, table in maps.items():
        first = np.arange(sizes.num_groups)[:, None, None] * (sizes.num_experts // sizes.num_groups)
        experts = table.reshape(sizes.num_groups, sizes.vocab_size, sizes.top_k) + first  # (G, V, k)
        for group, of_group in enumerate(experts):
            tensors[f"layers.{layer}.groups.{group}.tid2eid"] = np.ascontiguousarray(of_group, np.int32)
    numbers = {name: str(value) for name, value in sizes._asdict().items()}
    content: bytes = save(tensors, metadata={"format": FORMAT, **numbers, **origin})
    return content


def read_map(path: str, layer: int, sizes: MapSizes) -> np.ndarray:
    """<int32>[G, V], or [G, V, k] with k above 1: a layer's map in the file `path`, as experts within the group.

    Args:
        path: the file. layer: number of the sparse layer. sizes: that the map must fit.

    Raises InputError: no such file, one of another format, without this layer, or whose maps do not fit.
    """
    where, per_group = f"moe.router.hash.map {path}", sizes.num_experts // sizes.num_groups
    found = _tensors_of(path, layer, where)
    if sorted(found) != list(range(sizes.num_groups)):
        raise InputError(
            f"{where}: layer {layer} has maps of the groups {', '.join(map(str, sorted(found))) or 'none'}; expected "
            f"groups 0 to {sizes.num_groups - 1} (moe.num_groups is {sizes.num_groups})"
        )
    tables = []
    for group in range(sizes.num_groups):
        what, first = f"{where}: layer {layer}, group {group}", group * per_group
        _check(found[group], what, range(first, first + per_group), sizes)
        tables.append((found[group] - first).astype(np.int32))
    whole = np.stack(tables)  # (G, V, k)
    return whole[..., 0] if sizes.top_k == 1 else whole


def _check(table: np.ndarray, what: str, experts: range, sizes: MapSizes) -> None:
    """Raises InputError where a group's `table` is not what a map of its `experts` is; `what` names it."""
    shape = (sizes.vocab_size, sizes.top_k)
    if table.dtype.kind not in "iu" or table.shape != shape:
        raise InputError(
            f"{what}: found {table.dtype} {list(table.shape)}, expected integers {list(shape)}: the experts of each "
            "token id of the vocabulary (model.vocab_size), as many as moe.router.top_k"
        )
    outside = np.argwhere((table < experts.start) | (table >= experts.stop))
    if len(outside):
        token_id, choice = outside[0].tolist()
        raise InputError(
            f"{what}: token id {token_id} goes to expert {int(table[token_id, choice])}; expected experts "
            f"{experts.start} to {experts.stop - 1}, those of the group"
        )
    ordered = np.sort(table, axis=1)
    twice = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1))
    if len(twice):
        raise InputError(
            f"{what}: token id {int(twice[0])} goes to the experts {table[twice[0]].tolist()}; expected different ones"
        )


def _tensors_of(path: str, layer: int, where: str) -> Dict[int, np.ndarray]:
    """By group: the tensors of a layer in a file of maps."""
    from safetensors import SafetensorError, safe_open

    found: Dict[int, np.ndarray] = {}
    layers = set()
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():
                match = _NAME.fullmatch(name)
                if match is None:
                    continue
                layers.add(int(match[1]))
                if int(match[1]) == layer:
                    found[int(match[2] or 0)] = file.get_tensor(name)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{where}: cannot be read ({error}); expected {_EXPECTED}") from None
    if not layers:
        raise InputError(f"{where}: it holds no map; expected {_EXPECTED}")
    if not found:
        there = ", ".join(map(str, sorted(layers)))
        raise InputError(f"{where}: it has no map of sparse layer {layer}, but of {there}; expected one of each layer")
    return found
