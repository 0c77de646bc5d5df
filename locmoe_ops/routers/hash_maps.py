"""Fixed random maps from token id to expert: level 2 of PanGu-Sigma's RRE (arXiv 2303.10845) and of Hash Layers.

Nothing here is learned: a map is drawn once, at initialisation, and belongs to the checkpoint. Shape legend:
V vocabulary size, G expert groups, k experts of an id. A map of one expert an id has no axis for k.
"""

from typing import Any, List, NamedTuple, Optional, Union

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


def uniform_hash_map(vocab_size: int, experts: int, seed: Seed, top_k: int = 1) -> np.ndarray:
    """(V,) int32, or (V,k): shuffle the ids and deal them out, so that expert shares differ by at most one id.

    The balanced random map of Random Routed Experts (arXiv 2303.10845) and of Hash Layers (arXiv 2106.04426). With k
    above 1 an id's experts differ, and any k of them may come together.

    Args:
        vocab_size: V. experts: to choose from. seed: of the shuffle. top_k: k.

    Raises:
        InputError: sizes below 1, fewer experts than k, a negative seed.
    """
    _require_at_least("vocab_size", vocab_size, 1)
    _check_choices(experts, top_k)
    generator = _generator(seed)
    table = np.empty((vocab_size, top_k), np.int32)
    order = generator.permutation(vocab_size)
    table[order] = _deal(vocab_size, experts, top_k, generator)
    return table[:, 0] if top_k == 1 else table


def frequency_hash_map(counts: np.ndarray, experts: int, seed: Seed, top_k: int = 1) -> np.ndarray:
    """(V,) int32, or (V,k): draw an expert for every id, the most frequent first, so that in the end all have an equal
    share of the text. With k above 1 an id draws k different ones, one after another.

    An expert is drawn with the probability of the room that its share still has, among those whose room the id does not
    exceed; if there is none, the one with the most room is taken. The greedy assignment of Hash Layers (arXiv
    2106.04426), the expert with the least text so far, balances as well but leaves hardly anything to the seed: the
    maps of two layers were the same for nearly nine tenths of the text, and the model lost what several layers of
    experts have over one. Ids that never occur tell nothing about load; they are dealt out evenly.

    Args:
        counts: (V,) integers >= 0, occurrences of each id in the training text.
        experts: experts to choose from.
        seed: of the draws.
        top_k: k.

    Raises:
        InputError: counts of another shape, type or sign; `experts` below 1 or below k; a negative seed.
    """
    counts = np.asarray(counts)
    _check_counts(counts, dimensions=(1,))
    _check_choices(experts, top_k)
    generator = _generator(seed)
    shuffled = generator.permutation(len(counts))
    order = shuffled[np.argsort(counts[shuffled], kind="stable")[::-1]]
    seen = int(np.count_nonzero(counts))
    table = np.empty((len(counts), top_k), np.int32)
    room = np.full(experts, counts.sum() * top_k / experts)
    for token_id, draws in zip(order[:seen], generator.random((seen, top_k))):
        left = room.copy()
        for choice, draw in enumerate(draws):
            bounds = np.where(left >= counts[token_id], left, 0.0).cumsum()
            expert = np.searchsorted(bounds, draw * bounds[-1], "right") if bounds[-1] > 0.0 else left.argmax()
            table[token_id, choice] = expert
            room[expert] -= counts[token_id]
            left[expert] = -np.inf  # an id has an expert once
    table[order[seen:]] = _deal(len(counts) - seen, experts, top_k, generator)
    table = generator.permutation(experts).astype(np.int32)[table]  # of equal rooms the first was taken
    return table[:, 0] if top_k == 1 else table


def cooccurrence_hash_map(
    counts: np.ndarray, id_nodes: np.ndarray, expert_nodes: np.ndarray, seed: np.random.SeedSequence, top_k: int = 1
) -> np.ndarray:
    """(V,) int32, or (V,k): for every id experts of its node, drawn by `frequency_hash_map` among the node's ids and
    experts.

    Args:
        counts: (V,) integers >= 0, occurrences of each id in the training text.
        id_nodes: (V,) node of each id. expert_nodes: (n,) node of each expert.
        seed: of the draws. top_k: k.

    Raises:
        InputError: a node with ids has fewer than k experts; and as `frequency_hash_map`.
    """
    table = np.empty(len(counts) if top_k == 1 else (len(counts), top_k), np.int32)
    for node in np.unique(id_nodes).tolist():
        ids, experts = np.flatnonzero(id_nodes == node), np.flatnonzero(expert_nodes == node)
        if len(experts) < top_k:
            least = "one" if top_k == 1 else f"{top_k} (moe.router.top_k)"
            raise InputError(
                f"hash map: node {node} has {len(ids)} ids and {len(experts) or 'no'} "
                f"expert{'s' if len(experts) > 1 else ''}, expected {least} at least"
            )
        stream = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, node))
        table[ids] = experts[frequency_hash_map(counts[ids], len(experts), stream, top_k)]
    return table


def experts_of_codes(codes: np.ndarray, top_k: int) -> np.ndarray:
    """(G,V) int, or (G,V,k): the experts that codes lie nearest to, those of their largest coordinates; of equal ones
    the first.

    Args:
        codes: (G,V,n) float, see `locmoe_ops.routers.gates.draw_codes`. top_k: k.
    """
    order: np.ndarray = np.argsort(-codes, axis=-1, kind="stable")
    return order[..., 0] if top_k == 1 else order[..., :top_k]


def layer_hash_tables(
    kind: str,
    num_groups: int,
    experts_per_group: int,
    vocab_size: int,
    layer: int,
    seed: int,
    counts: Optional[np.ndarray] = None,
    nodes: Optional[NodesOfIds] = None,
    top_k: int = 1,
) -> np.ndarray:
    """(G,V) int32, or (G,V,k): one sparse layer's maps, experts 0..experts_per_group-1 within the group for every token
    id.

    Every layer and every group draws from a random stream of its own, so that a map does not depend on how many others
    there are.

    Args:
        kind: one of `KINDS`.
        num_groups: G. experts_per_group: to choose from. vocab_size: V.
        layer: index of the layer, >= 0.
        seed: of the whole model, >= 0.
        counts: unless `uniform`: occurrences of each id, (V,) for all groups alike or (G,V).
        nodes: for `cooccurrence`: of ids and experts.
        top_k: k, the experts of an id.

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
        return np.stack([uniform_hash_map(vocab_size, experts_per_group, stream, top_k) for stream in streams])
    if counts is None:
        raise InputError(f"hash map: counts are missing, expected token counts for kind '{kind}'")
    counts = np.asarray(counts)
    _check_counts(counts, dimensions=(1, 2))
    if counts.shape not in ((vocab_size,), (num_groups, vocab_size)):
        expected = f"({vocab_size},) or ({num_groups}, {vocab_size})"
        raise InputError(f"hash map: counts have shape {counts.shape}, expected {expected}")
    counts = np.broadcast_to(counts, (num_groups, vocab_size))
    if kind == "frequency":
        return np.stack(
            [frequency_hash_map(counts[g], experts_per_group, stream, top_k) for g, stream in enumerate(streams)]
        )
    if nodes is None or nodes.ids.shape != counts.shape or nodes.experts.shape != (num_groups, experts_per_group):
        found = "none" if nodes is None else f"{nodes.ids.shape} and {nodes.experts.shape}"
        raise InputError(
            f"hash map: nodes of ids and of experts are {found}, expected {counts.shape} and "
            f"{(num_groups, experts_per_group)} for kind 'cooccurrence'"
        )
    return np.stack(
        [
            cooccurrence_hash_map(counts[g], nodes.ids[g], nodes.experts[g], stream, top_k)
            for g, stream in enumerate(streams)
        ]
    )


def _deal(rows: int, experts: int, top_k: int, generator: np.random.Generator) -> np.ndarray:
    """(rows,k) int: experts dealt out so that their shares differ by at most one, and no row has one twice.

    For one expert a row they are dealt in order. For more they come in rounds, each a random order of all of them:
    dealt in order, the same k would always come together, and be one expert of k times the width.
    """
    if top_k == 1:
        return np.arange(rows)[:, None] % experts
    dealt = np.empty((rows, top_k), np.int64)
    pile: List[int] = []
    for row in dealt:
        taken, pile = pile[:top_k], pile[top_k:]
        if len(taken) < top_k:  # the next round, in which what the row has already comes last
            order = generator.permutation(experts).tolist()
            fresh = [one for one in order if one not in taken] + [one for one in order if one in taken]
            missing = top_k - len(taken)
            taken, pile = taken + fresh[:missing], fresh[missing:]
        row[:] = taken
    return dealt


def _check_counts(counts: np.ndarray, dimensions: tuple[int, ...]) -> None:
    if counts.ndim not in dimensions or counts.size == 0:
        raise InputError(f"hash map: counts have shape {counts.shape}, expected one count per token id")
    if not np.issubdtype(counts.dtype, np.integer):
        raise InputError(f"hash map: counts are of type {counts.dtype}, expected integers")
    if counts.min() < 0:
        raise InputError(f"hash map: counts go down to {counts.min()}, expected none below 0")


def _check_choices(experts: int, top_k: int) -> None:
    _require_at_least("experts", experts, 1)
    _require_at_least("top_k", top_k, 1)
    if top_k > experts:
        raise InputError(f"hash map: top_k is {top_k}, expected at most {experts}, the experts to choose from")


def _require_at_least(name: str, found: Any, least: int) -> None:
    if isinstance(found, bool) or not isinstance(found, (int, np.integer)) or found < least:
        raise InputError(f"hash map: {name} is {found!r}, expected an integer of at least {least}")


def _generator(seed: Seed) -> np.random.Generator:
    if not isinstance(seed, np.random.SeedSequence):
        _require_at_least("seed", seed, 0)
    return np.random.default_rng(seed)
