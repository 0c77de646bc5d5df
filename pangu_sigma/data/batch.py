"""Rows of ids to the arrays that a network reads.

Shape legend: B rows, S positions.
"""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """Rows of ids and what a network needs to know of them, on the host.

    Attributes:
        ids: <int32>[B, S].
        targets: <int32>[B, S], the id after each.
        positions: <int32>[B, S], within the document where positions restart, else within the row.
        documents: <int32>[B, S], number of the document within the row, from 0.
        loss_mask: <float32>[B, S], 1 where the target counts.
        domain: <int32>[B].
        home: <int32>[B], the logical rank that the row belongs to.
    """

    ids: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    documents: np.ndarray
    loss_mask: np.ndarray
    domain: np.ndarray
    home: np.ndarray


def make_batch(rows: np.ndarray, domain: np.ndarray, home: np.ndarray, end_of_text: int, reset: bool) -> Batch:
    """A batch of rows.

    Args:
        rows: <int32>[B, S + 1].
        domain, home: <int>[B], see `Batch`.
        end_of_text: the id that ends a document.
        reset: whether positions restart after each `end_of_text`, which belongs to the document that it ends; the
            target after it belongs to another document and does not count.
    """
    ids, targets = rows[:, :-1], rows[:, 1:]
    places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    if reset:
        ends = ids == end_of_text
        starts = np.zeros(ids.shape, np.int32)
        starts[:, 1:] = np.where(ends[:, :-1], places[:, 1:], 0)
        positions = places - np.maximum.accumulate(starts, axis=1)
        documents = np.cumsum(starts > 0, axis=1, dtype=np.int32)
        mask = (~ends).astype(np.float32)
    else:
        positions, documents, mask = places.copy(), np.zeros(ids.shape, np.int32), np.ones(ids.shape, np.float32)
    return Batch(
        np.ascontiguousarray(ids),
        np.ascontiguousarray(targets),
        positions,
        documents,
        mask,
        domain.astype(np.int32),
        home.astype(np.int32),
    )
