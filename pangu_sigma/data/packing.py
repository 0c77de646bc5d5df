"""Documents to rows of sequence_length + 1 ids, and the choice of documents held out for validation."""

from typing import Iterable, Iterator, List, Sequence

import numpy as np


def pack_rows(documents: Iterable[Sequence[int]], sequence_length: int) -> Iterator[np.ndarray]:
    """Joins documents (already tagged and ended) and cuts rows, each (sequence_length + 1,) int32.

    A row starts with the id that the row before it ends with, so that every id but the first is a target once.
    The tail that fills no row is dropped.
    """
    waiting: List[int] = []
    for ids in documents:
        waiting.extend(ids)
        start = 0
        while len(waiting) - start > sequence_length:
            yield np.asarray(waiting[start : start + sequence_length + 1], np.int32)
            start += sequence_length
        del waiting[:start]


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents validate, (n,) bool <- their text hashes, (n,) uint64: those in the lowest `fraction` of hashes.

    Equal texts share a side. With two different texts or more, each side gets at least one.
    """
    below = hashes < np.uint64(int(fraction * 2.0**64))
    if not below.any():
        return hashes == hashes.min()
    if below.all():
        return hashes != hashes.max()
    return below
