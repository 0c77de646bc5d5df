"""Ids that occur in the same documents, together on a node (ours): so that a document leans to one node, which can then
read it (`data.placement: known_routes`).

Integers and their quotients alone: every rank finds the same nodes, on any machine. Shape legend: R documents, V ids,
S nodes.
"""

from typing import NamedTuple, Sequence

import numpy as np
from scipy.sparse import csr_matrix

MOST_ROUNDS = 50  # of moving documents and ids in turn; samples of 20 MB took 6 to 17


def split_by_cooccurrence(documents: csr_matrix, shares: Sequence[float]) -> np.ndarray:
    """The node of each id, <int32>[V]: ids of the same documents together, and of the text to each node its share.

    1. The nodes are halved, and halved again.
    2. Of each two halves, documents first belong to one by their order, in which alike ones often are neighbours.
    3. In turn each id goes to the half whose documents have more of it, as far as that half's share of the text has
       room, and each document to the half that has more of its ids, until no more tokens are at home for it.

    Ids that never occur are dealt out by shares.

    Args:
        documents: <int64>[R, V], how often each id occurs in each document.
        shares: of the text, S numbers of at least 0, in any unit; a node of share 0 gets no ids.
    """
    weights = np.asarray(shares, np.float64)
    ends = np.cumsum(weights) / weights.sum()
    node = np.empty(documents.shape[1], np.int32)
    counts = _column_sums(documents)
    seen, unseen = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    node[unseen] = np.searchsorted(ends, (np.arange(len(unseen)) + 0.5) / max(len(unseen), 1))
    pending = [(documents[:, seen], seen, [s for s in range(len(weights)) if weights[s] > 0.0])]
    while pending:
        text, ids, nodes = pending.pop()
        if len(nodes) == 1:
            node[ids] = nodes[0]
            continue
        parts = nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :]
        halves = _halve(text, counts[ids], weights[parts[0]].sum() / weights[nodes].sum())
        for first, of_part in zip((True, False), parts):
            pending.append((text[halves.documents == first][:, halves.ids == first], ids[halves.ids == first], of_part))
    return node


class _Halves(NamedTuple):
    """Whether each document, and each id, belongs to the first half: bool[R], bool[V]."""

    documents: np.ndarray
    ids: np.ndarray


def _halve(documents: csr_matrix, counts: np.ndarray, share: float) -> _Halves:
    """`counts`: of the ids in all text, by which shares are balanced; `documents` may be those of one half of it."""
    here, rows = np.maximum(_column_sums(documents), 1), documents.shape[0]
    wanted = round(share * rows)
    first = np.arange(rows) < wanted
    best, most = _Halves(first, np.zeros(len(counts), bool)), -1
    for _ in range(MOST_ROUNDS):
        order = np.argsort(-_column_sums(documents[first]) / here, kind="stable")
        ids = _fill(order, counts, share * counts.sum())
        lean = documents @ np.where(ids, 1, -1)  # (R,) tokens of the first half's ids less those of the other's
        first = np.zeros(rows, bool)
        first[np.argsort(-lean, kind="stable")[:wanted]] = True
        at_home = int(lean[first].sum() - lean[~first].sum())
        if at_home <= most:
            break
        best, most = _Halves(first, ids), at_home
    return best


def _fill(order: np.ndarray, counts: np.ndarray, room: float) -> np.ndarray:
    """bool[V]: of the ids in this `order` those that still find room, each as large as its count."""
    taken = np.zeros(len(counts), bool)
    for token_id in order.tolist():
        if counts[token_id] <= room:
            taken[token_id] = True
            room -= counts[token_id]
    return taken


def _column_sums(documents: csr_matrix) -> np.ndarray:
    return np.asarray(documents.sum(axis=0), np.int64).ravel()
