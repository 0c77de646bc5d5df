"""Which slot of which expert an assignment gets, and which are dropped.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments (choice-major: all first choices in token
order, then all second ones), E experts, M slots of the rank's send buffer.
"""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops


@dataclass(frozen=True)
class SlotTable:
    """Where the slots of each expert lie in a send buffer: in one stretch, or in two.

    Attributes: start, first, second <int32>[E]: the first `first[e]` slots of expert e begin at `start[e]`, further
    ones at `second[e]`; capacity <int32>[E]: slots in all; slots: M, length of the buffer.
    """

    start: np.ndarray
    first: np.ndarray
    second: np.ndarray
    capacity: np.ndarray
    slots: int

    def slot(self, expert: int, rank: int) -> int:
        """Place of the `rank`-th token (from 0) that gets a slot of `expert`."""
        inside = rank < self.first[expert]
        return int(self.start[expert] + rank if inside else self.second[expert] + rank - self.first[expert])


def uniform_slots(position_of: np.ndarray, capacity: int, experts: Optional[int] = None) -> SlotTable:
    """The same capacity for every expert, expert after expert in the order of `position_of` <int>[E]; only positions
    below `experts` (None: E) have slots.
    """
    experts = len(position_of) if experts is None else experts
    every = np.where(position_of < experts, capacity, 0).astype(np.int32)
    start = (np.asarray(position_of) * capacity).astype(np.int32)
    return SlotTable(start, every, start, every, experts * capacity)


def exclusive_cumsum(counts: Tensor) -> Tensor:
    """Sums of the rows above each row: <float32>[N, E] <- <float32>[N, E]. Whole numbers are exact below 2**24."""
    return ops.cumsum(counts, 0) - counts


def slot_permutation(slot: Tensor, kept: Tensor, index: Tensor, slots: int) -> Dict[str, Tensor]:
    """A map of N assignments into `slots` slots, and its inverse, as `PermuteRows` wants them.

    slot <int32>[N], distinct where kept; kept bool[N]; index <int32>[N]: 0, 1, 2, ... Returns what `SlotAssignment`
    does.
    """
    # Assignments that are not kept all land on one spare slot past the end, which is then cut off.
    landing = ops.select(kept, slot, ops.full_like(slot, slots)).reshape(-1, 1)
    filled_by = ops.scatter_nd(landing, index + 1, (slots + 1,))[:slots]
    filled = filled_by > 0
    return {
        "slot": ops.select(kept, slot, ops.zeros_like(slot)),
        "kept": ops.cast(kept, dtype.float32).reshape(-1, 1),
        "assignment": ops.select(filled, filled_by - 1, ops.zeros_like(filled_by)),
        "filled": ops.cast(filled, dtype.float32).reshape(-1, 1),
    }


class Slots(nn.Cell):
    """Order, ranks and places of assignments: what kinds of slot assignment share.

    Args:
        tokens: T. top_k: k. table: the slots of every expert. by_weight: order by gate weight, larger first, ties by
            position; else by position (choice-major).
    """

    def __init__(self, tokens: int, top_k: int, table: SlotTable, by_weight: bool) -> None:
        super().__init__()
        self.count = tokens * top_k
        self.experts = len(table.capacity)
        self.slots = table.slots
        self.by_weight = by_weight
        columns = np.stack([table.start, table.first, table.second, table.capacity], 1)
        self.table = Tensor(
            np.concatenate([columns, np.zeros((1, 4))]).astype(np.int32)
        )  # (E + 1, 4): none fits expert E
        self.index = Tensor(np.arange(self.count, dtype=np.int32))

    def place(self, expert: Tensor, rank: Tensor) -> Dict[str, Tensor]:
        """expert, rank <int32>[N] -> the output."""
        start, first, second, capacity = ops.unstack(ops.gather(self.table, expert, 0), 1)
        kept = rank < capacity
        slot = ops.select(rank < first, start + rank, second + rank - first)
        return slot_permutation(slot, kept, self.index, self.slots)

    def capacity_of(self, expert: Tensor) -> Tensor:
        """Capacity of each one's expert, 0 for E: <int32>[N] <- <int32>[N]"""
        return ops.gather(self.table, expert, 0)[:, 3]

    def order(self, weight: Tensor) -> Tensor:
        """Indices of assignments, first come first: <int32>[N] <- <float32>[T, k]"""
        if not self.by_weight:
            return self.index
        # Equal weights get equal levels, and the index makes keys unique: the order does not rest on how a sort treats
        # ties.
        weight = ops.cast(weight.T.reshape(-1), dtype.float32)
        ascending, _ = ops.sort(weight)
        level = ops.searchsorted(ascending, weight)  # (N,) int64: how many weights are smaller
        key = level * self.count + (self.count - 1 - ops.cast(self.index, dtype.int64))
        ordered, _ = ops.sort(key, descending=True)
        return ops.cast(self.count - 1 - ops.floor_mod(ordered, self.count), dtype.int32)

    def rank(self, expert: Tensor, order: Tensor) -> Tensor:
        """How many assignments ahead of each one in `order` have its expert: <int32>[N]"""
        if not self.by_weight:
            return self._rank(expert)
        return ops.scatter_nd(order.reshape(-1, 1), self._rank(ops.gather(expert, order, 0)), (self.count,))

    def _rank(self, expert: Tensor) -> Tensor:
        """(N,) int32: how many earlier assignments have the same expert."""
        one_hot = ops.one_hot(expert, self.experts, Tensor(1.0, dtype.float32), Tensor(0.0, dtype.float32))
        return ops.cast((exclusive_cumsum(one_hot) * one_hot).sum(1), dtype.int32)


class SlotAssignment(Slots):
    """Gives each assignment a slot of its expert, in priority order, until the expert's slots are taken.

    1. Order the assignments: by position (choice-major), or by gate weight, larger first, ties by position.
    2. Count, per expert, the assignments ahead of each one: its rank.
    3. Ranks below the expert's capacity keep the slot that `table` gives them; the others are dropped.
    4. Invert the map: the assignment that fills each slot.

    Inputs: expert <int32>[T, k], global ids, E where there is no assignment; weight <float32>[T, k], >= 0.
    Output: a dict of slot <int32>[N] (0 where dropped), kept <float32>[N, 1], assignment <int32>[M] (0 where empty),
    filled <float32>[M, 1].
    """

    def construct(self, expert: Tensor, weight: Tensor) -> Dict[str, Tensor]:
        expert = expert.T.reshape(-1)  # (N,) <- (T, k)
        return self.place(expert, self.rank(expert, self.order(weight)))


class PermuteRows(nn.Cell):
    """Copies rows to new places; places that nothing is sent to become 0.

    `source[i]` is the input row of output row i and `target` the inverse map; the masks are 0 where a row has no
    counterpart, with any valid index beside them. As no input row is used twice, the gradient is the same gather with
    the maps swapped.

    Inputs: rows <float>[N, d]; source <int32>[M]; source_mask <float32>[M, 1]; target <int32>[N]; target_mask
        <float32>[N, 1].
    Output: <float>[M, d].
    """

    def __init__(self) -> None:
        super().__init__()
        self.gather = ops.Gather()

    def construct(
        self, rows: Tensor, source: Tensor, source_mask: Tensor, target: Tensor, target_mask: Tensor
    ) -> Tensor:
        return self.gather(rows, source, 0) * ops.cast(source_mask, rows.dtype)

    def bprop(
        self,
        rows: Tensor,
        source: Tensor,
        source_mask: Tensor,
        target: Tensor,
        target_mask: Tensor,
        out: Tensor,
        dout: Tensor,
    ) -> Tuple[Tensor, ...]:
        grad = self.gather(dout, target, 0) * ops.cast(target_mask, dout.dtype)
        return (
            grad,
            ops.zeros_like(source),
            ops.zeros_like(source_mask),
            ops.zeros_like(target),
            ops.zeros_like(target_mask),
        )
