"""Who gets the slots of an expert when more tokens of a rank want it than its capacity allows."""


import numpy as np

Assignment = tuple[int, int]  # token, choice


def keep_within_capacity(expert: np.ndarray, gate_weight: np.ndarray, capacity: int, priority: str) -> np.ndarray:
    """(T,k) bool: the assignments of one rank that find a slot.

    Args:
        expert: (T,k) int, global expert ids.
        gate_weight: (T,k) float, looked at under priority `weight` only.
        capacity: slots per expert for this rank.
        priority: `position`: all first choices in token order, then all second choices, and so on; `weight`: larger
            gate weight first, equal ones as under `position`.
    """
    kept = np.zeros(expert.shape, bool)
    taken: dict[int, int] = {}
    for t, choice in _in_priority_order(gate_weight, priority):
        wanted = int(expert[t, choice])
        if taken.get(wanted, 0) < capacity:
            taken[wanted] = taken.get(wanted, 0) + 1
            kept[t, choice] = True
    return kept


def _in_priority_order(gate_weight: np.ndarray, priority: str) -> list[Assignment]:
    tokens, choices = gate_weight.shape
    order = [(t, choice) for choice in range(choices) for t in range(tokens)]
    if priority == "weight":
        order.sort(key=lambda assignment: -gate_weight[assignment])  # stable: ties keep their positions
    return order
