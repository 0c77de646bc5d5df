"""Who comes first among tokens that compete for something.

Shape legend: T tokens of this rank, R things that they compete for.
"""

from mindspore import Tensor, dtype, ops

from locmoe_ops.functions import sortable_bits


def rank_within_sets(priority: Tensor, sets: Tensor) -> Tensor:
    """How many tokens of the same set come before each, <int32>[R, T].

    Larger priority comes first, of equal ones the earlier token: positions enter the keys, so that the order does not
    rest on how a sort treats ties. There is no gradient.

    Args:
        priority: <float32>[R, T], one row for each thing. sets: <int32>[T], the set of each token, 0 or more.
    """
    rows, count = priority.shape
    bits = sortable_bits(priority.reshape(-1)).reshape(rows, count)  # (R, T) <- (R*T,) <- (R, T)
    ascending, _ = ops.sort(bits)
    smaller = ops.cast(ops.searchsorted(ascending, bits), dtype.int64)  # (R, T): how many priorities of the row are
    index = ops.arange(0, count, 1, dtype=dtype.int64)
    key = (ops.cast(sets, dtype.int64) * count + (count - 1 - smaller)) * count + index  # (R, T), all of a row differ
    ordered, _ = ops.sort(key)
    by_set, _ = ops.sort(sets)
    before = ops.searchsorted(ordered, key) - ops.searchsorted(by_set, sets)  # less what is of sets before: (T,)
    return ops.cast(before, dtype.int32)
