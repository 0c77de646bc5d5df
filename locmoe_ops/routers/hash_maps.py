"""Fixed random maps from token id to expert: level 2 of PanGu-Sigma's RRE (arXiv 2303.10845) and of Hash Layers.

Nothing here is learned: a map is drawn once, at initialisation, and belongs to the checkpoint. Shape legend:
V vocabulary size, G expert groups.
"""

from typing import Any, NamedTuple, Optional, Union

import numpy as np

from locmoe_ops.errors import InputError

Seed = Union[int, np.random.SeedSequence]
KINDS = ("uniform", "frequency", "cooccurrence")


class NodesOfIds(NamedTuple):
    """For maps of kind `cooccurrence`.

    Attributes:
        ids: <int>[G, V], the node of each id (see `locmoe_ops.routers.cooccurrence`).
        experts: <int>[G, n], the node of each expert of a group.
    """

    ids: np.ndarray
    experts: np.ndarray


def uniform_hash_map(vocab_size: int, experts: int, seed: Seed) -> np.ndarray:
    """(V,) int32: shuffle the ids and deal them out, so that expert shares differ by at most one id.

    The balanced random map of Random Routed Experts (arXiv 2303.10845) and of Hash Layers (arXiv 2106.04426).

    Args:
        vocab_size: V. experts: to choose from. seed: of the shuffle.

    Raises:
        InputError: sizes below 1, a negative seed.
    """
    _require_at_least("vocab_size", vocab_size, 1)
    _require_at_least("experts", experts, 1)
    order = _generator(seed).permutation(vocab_size)
    table = np.empty(vocab_size, np.int32)
    table[order] = np.arange(vocab_size) % experts
    return table


def frequency_hash_map(counts: np.ndarray, experts: int, seed: Seed) -> np.ndarray:
    """(V,) int32: draw an expert for every id, the most frequent first, so that in the end all have an equal share of
    the text.

    An expert is drawn with the probability of the room that its share still has, among those whose room the id does not
    exceed; if there is none, the one with the most room is taken. The greedy assignment of Hash Layers (arXiv
    2106.04426), the expert with the least text so far, balances as well but leaves hardly anything to the seed: the
    maps of two layers were the same for nearly nine tenths of the text, and the model lost what several layers of
    experts have over one. Ids that never occur tell nothing about load; they are dealt out evenly.

    Args:
        counts: (V,) integers >= 0, occurrences of each id in the training text.
        experts: experts to choose from.
        seed: of the draws.

    Raises:
        InputError: counts of another shape, type or sign; `experts` below 1; a negative seed.
    """
    counts = np.asarray(counts)
    _check_counts(counts, dimensions=(1,))
    _require_at_least("experts", experts, 1)
    generator = _generator(seed)
    shuffled = generator.permutation(len(counts))
    order = shuffled[np.argsort(counts[shuffled], kind="stable")[::-1]]
    seen = int(np.count_nonzero(counts))
    table = np.empty(len(counts), np.int32)
    room = np.full(experts, counts.sum() / experts)
    for token_id, draw in zip(order[:seen], generator.random(seen)):
        bounds = np.where(room >= counts[token_id], room, 0.0).cumsum()
        expert = np.searchsorted(bounds, draw * bounds[-1], "right") if bounds[-1] > 0.0 else room.argmax()
        table[token_id] = expert
        room[expert] -= counts[token_id]
    table[order[seen:]] = np.arange(len(counts) - seen) % experts
    return generator.permutation(experts).astype(np.int32)[table]  # of equal rooms the first was taken


def cooccurrence_hash_map(
    counts: np.ndarray, id_nodes: np.ndarray, expert_nodes: np.ndarray, seed: np.random.SeedSequence
) -> np.ndarray:
    """(V,) int32: for every id an expert of its node, drawn by `frequency_hash_map` among the node's ids and experts.

    Args:
        counts: (V,) integers >= 0, occurrences of each id in the training text.
        id_nodes: (V,) node of each id. expert_nodes: (n,) node of each expert.
        seed: of the draws.

    Raises:
        InputError: a node with ids has no expert; and as `frequency_hash_map`.
    """
    table = np.empty(len(counts), np.int32)
    for node in np.unique(id_nodes).tolist():
        ids, experts = np.flatnonzero(id_nodes == node), np.flatnonzero(expert_nodes == node)
        if not len(experts):
            raise InputError(f"hash map: node {node} has {len(ids)} ids and no expert, expected one at least")
        stream = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, node))
        table[ids] = experts[frequency_hash_map(counts[ids], len(experts), stream)]
    return table


def layer_hash_tables(
    kind: str,
    num_groups: int,
    experts_per_group: int,
    vocab_size: int,
    layer: int,
    seed: int,
    counts: Optional[np.ndarray] = None,
    nodes: Optional[NodesOfIds] = None,
) -> np.ndarray:
    """(G,V) int32: one sparse layer's maps, an expert 0..experts_per_group-1 within the group for every token id.

    Every layer and every group draws from a random stream of its own, so that a map does not depend on how many others
    there are.

    Args:
        kind: one of `KINDS`.
        num_groups: G. experts_per_group: to choose from. vocab_size: V.
        layer: index of the layer, >= 0.
        seed: of the whole model, >= 0.
        counts: unless `uniform`: occurrences of each id, (V,) for all groups alike or (G,V).
        nodes: for `cooccurrence`: of ids and experts.

    Raises:
        InputError: an unknown kind, sizes below 1, counts or nodes missing or of another shape.
    """
    if kind not in KINDS:
        raise InputError(f"hash map: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    _require_at_least("num_groups", num_groups, 1)
    _require_at_least("layer", layer, 0)
    _require_at_least("seed", seed, 0)
    streams = [np.random.SeedSequence(seed, spawn_key=(layer, group)) for group in range(num_groups)]
    if kind == "uniform":
        return np.stack([uniform_hash_map(vocab_size, experts_per_group, stream) for stream in streams])
    if counts is None:
        raise InputError(f"hash map: counts are missing, expected token counts for kind '{kind}'")
    counts = np.asarray(counts)
    _check_counts(counts, dimensions=(1, 2))
    if counts.shape not in ((vocab_size,), (num_groups, vocab_size)):
        expected = f"({vocab_size},) or ({num_groups}, {vocab_size})"
        raise InputError(f"hash map: counts have shape {counts.shape}, expected {expected}")
    counts = np.broadcast_to(counts, (num_groups, vocab_size))
    if kind == "frequency":
        return np.stack([frequency_hash_map(counts[g], experts_per_group, stream) for g, stream in enumerate(streams)])
    if nodes is None or nodes.ids.shape != counts.shape or nodes.experts.shape != (num_groups, experts_per_group):
        found = "none" if nodes is None else f"{nodes.ids.shape} and {nodes.experts.shape}"
        raise InputError(
            f"hash map: nodes of ids and of experts are {found}, expected {counts.shape} and "
            f"{(num_groups, experts_per_group)} for kind 'cooccurrence'"
        )
    return np.stack(
        [cooccurrence_hash_map(counts[g], nodes.ids[g], nodes.experts[g], stream) for g, stream in enumerate(streams)]
    )


def _check_counts(counts: np.ndarray, dimensions: tuple[int, ...]) -> None:
    if counts.ndim not in dimensions or counts.size == 0:
        raise InputError(f"hash map: counts have shape {counts.shape}, expected one count per token id")
    if not np.issubdtype(counts.dtype, np.integer):
        raise InputError(f"hash map: counts are of type {counts.dtype}, expected integers")
    if counts.min() < 0:
        raise InputError(f"hash map: counts go down to {counts.min()}, expected none below 0")


def _require_at_least(name: str, found: Any, least: int) -> None:
    if isinstance(found, bool) or not isinstance(found, (int, np.integer)) or found < least:
        raise InputError(f"hash map: {name} is {found!r}, expected an integer of at least {least}")


def _generator(seed: Seed) -> np.random.Generator:
    if not isinstance(seed, np.random.SeedSequence):
        _require_at_least("seed", seed, 0)
    return np.random.default_rng(seed)
