"""Rows of ids to the arrays a model takes."""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """b rows of S positions."""

    ids: np.ndarray  # (b, S) int32
    targets: np.ndarray  # (b, S) int32, the id after each
    positions: np.ndarray  # (b, S) int32
    documents: np.ndarray  # (b, S) int32, number of the document within the row, from 0
    loss_mask: np.ndarray  # (b, S) float32, 1 where the target counts
    domain: np.ndarray  # (b,) int32
    home: np.ndarray  # (b,) int32, logical rank the row belongs to


def make_batch(rows: np.ndarray, domain: np.ndarray, home: np.ndarray, end_of_text: int, reset: bool) -> Batch:
    """Batch of `rows` (b, S+1) int32.

    reset: positions restart after each end-of-text id, which belongs to the document it ends; the target after it
    belongs to another document and does not count.
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
