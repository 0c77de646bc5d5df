"""How gradients are put together into messages; needs no MindSpore, so that a job can be planned without it."""

from itertools import groupby
from typing import Any, List, Sequence, Tuple

BUCKET_ELEMENTS = 16 * 1024 * 1024  # 64 MB of float32 a message
# Of gradients that are sent during the backward pass: large enough to fill a link, small enough that the first leaves
# soon.
OVERLAP_BUCKET_ELEMENTS = 128 * 1024


def plan_buckets(sizes: Sequence[int], limit: int = BUCKET_ELEMENTS) -> List[Tuple[int, int]]:
    """Ranges (start, end) of neighbours, each of at most `limit` elements in all (or one larger tensor).

    Args:
        sizes: elements of each tensor, in gradient order.
        limit: elements of a message.
    """
    buckets, start, filled = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and filled + size > limit:
            buckets.append((start, i))
            start, filled = i, 0
        filled += size
    return buckets + [(start, len(sizes))] if sizes else []


def plan_alike(sizes: Sequence[int], kinds: Sequence[Any]) -> List[Tuple[int, int]]:
    """`plan_buckets` of `sizes`, each bucket of tensors of one kind; `kinds` has an entry a tensor."""
    buckets, first = [], 0
    for _, group in groupby(kinds):
        last = first + len(list(group))
        buckets += [(first + start, first + end) for start, end in plan_buckets(sizes[first:last])]
        first = last
    return buckets


def stretch_of(sizes: Sequence[int], ranks: int) -> int:
    """Elements that each of `ranks` has of a bucket of tensors of these `sizes`; the last one's may exceed its end."""
    return -(-sum(sizes) // ranks)
