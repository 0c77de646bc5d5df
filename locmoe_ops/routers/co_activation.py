"""Which experts go together: how often two of them are chosen for the same token.

NumPy only. Shape legend: N tokens, k experts a token, E experts, G groups, n = E / G.
"""

from typing import Optional

import numpy as np


def co_activation(expert: np.ndarray, num_experts: int) -> np.ndarray:
    """<int64>[E, E]: of how many tokens both experts are among the chosen ones; 0 on the diagonal.

    Args:
        expert: <int>[N, k], global ids; E where a choice was not taken up. num_experts: E.
    """
    chosen = np.zeros((len(expert), num_experts + 1), np.int64)
    np.put_along_axis(chosen, expert.astype(np.int64), 1, axis=1)
    chosen = chosen[:, :num_experts]
    pairs = chosen.T @ chosen
    np.fill_diagonal(pairs, 0)
    return pairs


def partner_table(
    num_experts: int, num_groups: int, num_stretches: int, partners: Optional[int], pairs: Optional[np.ndarray]
) -> np.ndarray:
    """<float32>[E, n]: 1 for each expert of the group that may follow a first one, 0 for the others and for itself.

    Args:
        num_experts: E. num_groups: G.
        num_stretches: equal stretches of neighbours that a group falls into; who follows is of the same one.
        partners: T; of those of the stretch the T that go with the first most often; of equal ones, the lower. None:
            all.
        pairs: <int>[E, E], of `co_activation`, with `partners`.
    """
    size = num_experts // num_groups
    table = np.zeros((num_experts, size), np.float32)
    for expert in range(num_experts):
        group, own = divmod(expert, size)
        stretch = own * num_stretches // size
        others = np.array([i for i in range(size) if i != own and i * num_stretches // size == stretch], np.int64)
        if partners is not None and pairs is not None:
            others = others[np.argsort(-pairs[expert, group * size + others], kind="stable")[:partners]]
        table[expert, others] = 1.0
    return table
