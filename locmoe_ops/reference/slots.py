"""Who gets the slots of an expert when more tokens of a rank want it than its capacity allows."""

from collections import Counter
from collections.abc import Sequence
from typing import Union

import numpy as np

Assignment = tuple[int, int]  # token, choice
Capacity = Union[int, Sequence[int]]


def keep_within_capacity(expert: np.ndarray, gate_weight: np.ndarray, capacity: Capacity, priority: str) -> np.ndarray:
    """(T,k) bool: the assignments of one rank that find a slot.

    Args:
        expert: (T,k) int, global expert ids.
        gate_weight: (T,k) float, looked at under priority `weight` only.
        capacity: slots per expert for this rank, or of each expert; ids beyond have none.
        priority: `position`: all first choices in token order, then all second choices, and so on; `weight`: larger
            gate weight first, equal ones as under `position`.
    """
    kept = np.zeros(expert.shape, bool)
    taken: dict[int, int] = {}
    for t, choice in _in_priority_order(gate_weight, priority):
        wanted = int(expert[t, choice])
        if taken.get(wanted, 0) < _slots_of(capacity, wanted):
            taken[wanted] = taken.get(wanted, 0) + 1
            kept[t, choice] = True
    return kept


def repick(
    expert: np.ndarray, gate_weight: np.ndarray, kept: np.ndarray, second: np.ndarray, capacity: Capacity, priority: str
) -> np.ndarray:
    """(T,k) bool: the assignments of one rank that found no slot and get one with their token's second expert.

    One a token: its first choice without a slot. They come in the order of `priority`, by the weight with which they
        lost.

    Args:
        expert, gate_weight, capacity, priority: as `keep_within_capacity`.
        kept: (T,k) bool, what that returned. second: (T,) int, another expert; -1: none.
    """
    moved = np.zeros(expert.shape, bool)
    taken = Counter(int(e) for e in expert[kept])
    waiting = [
        places[0]
        for places in (
            [(t, c) for c in range(expert.shape[1]) if not kept[t, c] and _slots_of(capacity, int(expert[t, c])) > 0]
            for t in range(len(expert))
        )
        if places
    ]
    for t, choice in _in_priority_order(gate_weight, priority):
        other = int(second[t])
        if (t, choice) in waiting and other >= 0 and taken[other] < _slots_of(capacity, other):
            taken[other] += 1
            moved[t, choice] = True
    return moved


def share_copies(
    expert: np.ndarray,
    gate_weight: np.ndarray,
    kept: np.ndarray,
    node_of: Sequence[int],
    own_node: int,
    copies: int,
    priority: str,
) -> np.ndarray:
    """(T,k) bool: of the assignments of one rank that found a slot with their expert, those whose token gets there.

    A token travels to another node once, for all of its assignments there, and each other node has room for so many
        tokens of the rank. The first of a token's assignments to a node takes its place there, in the order of
        `priority`. What stays on the own node needs none.

    Args:
        expert, gate_weight, priority: as `keep_within_capacity`.
        kept: (T,k) bool, what found a slot.
        node_of: node of each expert, as the rank finds it. own_node: of the rank.
        copies: tokens that each other node has room for.
    """
    carried = np.zeros(expert.shape, bool)
    travels: dict[int, set[int]] = {node: set() for node in node_of}
    for t, choice in _in_priority_order(gate_weight, priority):
        if not kept[t, choice]:
            continue
        node = node_of[int(expert[t, choice])]
        there = travels[node]
        if node != own_node and t not in there and len(there) < copies:
            there.add(t)
        carried[t, choice] = node == own_node or t in there
    return carried


def _slots_of(capacity: Capacity, expert: int) -> int:
    if isinstance(capacity, int):
        return capacity
    return capacity[expert] if expert < len(capacity) else 0


def _in_priority_order(gate_weight: np.ndarray, priority: str) -> list[Assignment]:
    tokens, choices = gate_weight.shape
    order = [(t, choice) for choice in range(choices) for t in range(tokens)]
    if priority == "weight":
        order.sort(key=lambda assignment: -gate_weight[assignment])  # stable: ties keep their positions
    return order
