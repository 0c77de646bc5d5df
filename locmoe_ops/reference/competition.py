"""Rules by which the tokens of a batch compete: experts that choose tokens, and the fastmoe library's cap.

Shape legend: T tokens, n experts of a token's group, k choices. Ties go to the earlier token and the lower expert.
"""

import math

import numpy as np


def expert_choice(probability: np.ndarray, sets: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every expert takes the ceil(k * S / n) likeliest of the S tokens of a set; a token keeps the k likeliest of those
    that took it.

    Args:
        probability: (T,n) float. sets: (T,) int, tokens that compete with each other. top_k: k.

    Returns: choice (T,k) int64, indices into the group, and absent (T,k) bool, where fewer than k took the token.
    """
    count, experts = probability.shape
    taken = np.zeros((count, experts), bool)
    for members in (np.flatnonzero(sets == one) for one in np.unique(sets)):
        room = math.ceil(top_k * len(members) / experts)
        for expert in range(experts):
            by_affinity = members[np.argsort(-probability[members, expert], kind="stable")]
            taken[by_affinity[:room], expert] = True
    choice = np.argsort(-probability - 2.0 * taken, axis=1, kind="stable")[:, :top_k]
    return choice, ~np.take_along_axis(taken, choice, axis=1)


def library_cap(score: np.ndarray, local: np.ndarray, home: np.ndarray, most: float) -> np.ndarray:
    """(T,2) int64: the experts of the fastmoe library's topology-aware gate (fmoe/gates/faster_gate.py).

    If fewer first choices of a home than its cap are remote, all tokens have their two best experts. Else all have
    their two best at home, but for those of the largest first scores, as many as the cap, which have their remote first
    choice in place of the second.

    Args:
        score: (T,n) float, gate scores. local: (T,n) bool, experts on the node of the token's home.
        home: (T,) int. most: share of a home's tokens that may leave; 1: no cap.
    """
    order = np.argsort(-score, axis=1, kind="stable")
    choice = order[:, :2].copy()
    for members in (np.flatnonzero(home == one) for one in np.unique(home)):
        cap = math.floor(most * len(members) + 1e-3)
        remote = [t for t in members if not local[t, order[t, 0]]]
        if len(remote) < cap or cap == len(members):
            continue
        for t in members:
            choice[t] = [*(i for i in order[t] if local[t, i]), *(i for i in order[t] if not local[t, i])][:2]
        for t in sorted(remote, key=lambda t: (-score[t, order[t, 0]], t))[:cap]:
            choice[t, 1] = order[t, 0]
    return choice
