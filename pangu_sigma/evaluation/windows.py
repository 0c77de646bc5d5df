"""What is to be scored, as rows of fixed length: too long pieces are cut, short ones share a row as documents of it.

Attention does not cross documents and positions start anew in each, so that a piece scores as it would alone, as long
as no token is dropped. Shape legend: B rows, S positions, n positions of a piece.
"""

from typing import List, NamedTuple, Sequence

import numpy as np

from pangu_sigma.data.batch import Batch


class ScoreRequest(NamedTuple):
    """`continuation` is scored after `context`, which is read only and not empty."""

    context: Sequence[int]
    continuation: Sequence[int]
    domain: int


class Window(NamedTuple):
    """A piece that fits a row. Positions from `first` on are scored."""

    request: int  # its number
    ids: np.ndarray  # (n,) int32
    targets: np.ndarray  # (n,) int32
    first: int


def cut(number: int, request: ScoreRequest, length: int) -> List[Window]:
    """Pieces of a request, of at most `length` positions, in which every id of the continuation is scored once.

    If context and continuation together are too long, the context loses ids after its first (the domain's tag). If the
    continuation alone is too long, its pieces follow each other as rows of training do: each begins with the id that
    the one before ends with. The last one reads as much of what comes before as there is room for.

    Args:
        number: which request it is.
        request: what is asked.
        length: S.
    """
    context, continuation = list(request.context), list(request.continuation)
    if len(continuation) <= length:
        room = length + 1 - len(continuation)
        kept = context if len(context) <= room else context[:1] + context[len(context) - room + 1 :]
        stream = np.asarray(kept + continuation, np.int32)
        return [Window(number, stream[:-1], stream[1:], len(kept) - 1)]
    stream = np.asarray(context[:1] + continuation, np.int32)
    windows: List[Window] = []
    for scored in range(0, len(stream) - 1, length):
        end = min(scored + length, len(stream) - 1)
        start = end - length  # not below 0: the continuation is longer than a row
        windows.append(Window(number, stream[start:end], stream[start + 1 : end + 1], scored - start))
    return windows


def lost(request: ScoreRequest, length: int) -> int:
    """Ids of the context that `cut` leaves out."""
    room = max(1, length + 1 - len(request.continuation))
    return max(0, len(request.context) - room)


class ScoredRow(NamedTuple):
    domain: int
    windows: List[Window]


def pack(windows: Sequence[Window], domains: Sequence[int], length: int) -> List[ScoredRow]:
    """Rows of windows of one domain each (level 1 routes a row as a whole): the longest first, each in the first row
    with room.

    Args:
        windows: of all requests.
        domains: of the requests, by number.
        length: S.
    """
    rows: List[ScoredRow] = []
    free: List[int] = []
    for window in sorted(windows, key=lambda w: -len(w.ids)):
        domain, size = domains[window.request], len(window.ids)
        place = next((i for i, row in enumerate(rows) if row.domain == domain and free[i] >= size), len(rows))
        if place == len(rows):
            rows.append(ScoredRow(domain, []))
            free.append(length)
        rows[place].windows.append(window)
        free[place] -= size
    return rows


def to_batch(rows: Sequence[ScoredRow], count: int, length: int) -> Batch:
    """The rows as a batch; what they leave free is a document of its own, of zeros. `loss_mask` is 1 where a window is
    scored; homes are 0.

    Args:
        rows: at most `count` of them.
        count: B.
        length: S.
    """
    ids, targets, positions, documents = (np.zeros((count, length), np.int32) for _ in range(4))
    mask, domain = np.zeros((count, length), np.float32), np.zeros(count, np.int32)
    for r, row in enumerate(rows):
        domain[r], start = row.domain, 0
        for number, window in enumerate(row.windows):
            part = slice(start, start + len(window.ids))
            ids[r, part], targets[r, part], documents[r, part] = window.ids, window.targets, number
            positions[r, part] = np.arange(len(window.ids))
            mask[r, start + window.first : part.stop] = 1.0
            start = part.stop
        documents[r, start:] = len(row.windows)
    return Batch(ids, targets, positions, documents, mask, domain, np.zeros(count, np.int32))
