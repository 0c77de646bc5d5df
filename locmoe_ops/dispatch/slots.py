"""Which slot of which expert an assignment gets, and which are dropped.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments (choice-major: all first choices in token
order, then all second ones), E experts, M slots of the rank's send buffer, d hidden size.
"""

from typing import Tuple, TypedDict

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.dispatch.geometry import SlotTable
from locmoe_ops.functions import choice_major, sortable_bits


class DispatchContext(TypedDict, total=False):
    """Where a dispatcher put the assignments of a micro-batch: a map of N assignments into M slots, and its inverse.

    Attributes:
        slot: <int32>[N], each assignment's; 0 where it is dropped.
        keep_mask: <float32>[N, 1], 1 of an assignment that has a slot.
        assignment: <int32>[M], what fills each slot; 0 where it is empty.
        slot_mask: <float32>[M, 1], 1 of a slot that is filled.
        expert, repicked: of `RepickingAssignment` alone: <int32>[N], the expert finally wanted; <float32>[N, 1], 1
            where re-picked and kept.
        counts: of `SortedAssignment` alone: <int32>[E], assignments of each expert, by position.
        sent, beyond_limit: of `RaggedDispatcher` alone: <int32>[P, P, L], rows from each rank to each expert of each
            rank; <float32> scalar, rows that come to this rank beyond those that it has room for.
        sizes, member: of `Regions` without gaps alone: see there.
        order: of `FusedRaggedDispatcher` alone: what `TokenUnsort` needs.
        sent_mask, pilot_mask: of `NodeDedupDispatcher` alone, as what follows: <float32>[N, 1], 1 of an assignment that
            travels by itself, and of one that is the pilot of a copy; keep_mask also has those that share its copy.
        copy_map, weight_of_slot: <int32>, what the slots of another node are for, as sent and as arrived.
        copies: <float32> scalar, copies of tokens that are sent to other nodes.
        block_expert: at inference alone: <int32>[blocks], the local expert of each block of slots.
    """

    slot: Tensor
    keep_mask: Tensor
    assignment: Tensor
    slot_mask: Tensor
    expert: Tensor
    repicked: Tensor
    counts: Tensor
    sent: Tensor
    beyond_limit: Tensor
    sizes: Tensor
    member: Tensor
    order: Tensor
    sent_mask: Tensor
    pilot_mask: Tensor
    copy_map: Tensor
    weight_of_slot: Tensor
    copies: Tensor
    block_expert: Tensor


def exclusive_cumsum(counts: Tensor) -> Tensor:
    """Sums of the rows above each row: <float32>[N, E] <- <float32>[N, E]. Whole numbers are exact below 2**24."""
    return ops.cumsum(counts, 0) - counts


class SlotPermutation(nn.Cell):
    """A map of N assignments into M slots, and its inverse, as `PermuteRows` wants them.

    Args:
        count: N. slots: M.

    Inputs: slot <int32>[N], distinct where kept; kept bool[N]. Output: a `DispatchContext`.
    """

    def __init__(self, count: int, slots: int) -> None:
        super().__init__()
        self.slots = slots
        # Constants, where a graph would fill tensors in every micro-batch.
        self.number = Tensor(np.arange(1, count + 1, dtype=np.int32))
        self.nowhere = Tensor(np.full(count, slots, np.int32))
        self.first = Tensor(np.zeros(count, np.int32))

    def construct(self, slot: Tensor, kept: Tensor) -> DispatchContext:
        # Assignments that are not kept all land on one spare slot past the end, which is then cut off.
        landing = ops.select(kept, slot, self.nowhere).reshape(-1, 1)  # (N, 1) <- (N,)
        filled_by = ops.scatter_nd(landing, self.number, (self.slots + 1,))[: self.slots]  # (M,) <- (N, 1)
        return {
            "slot": ops.select(kept, slot, self.first),
            "keep_mask": ops.cast(kept, dtype.float32).reshape(-1, 1),  # (N, 1) <- (N,)
            "assignment": ops.maximum(filled_by - 1, 0),
            "slot_mask": ops.cast(filled_by > 0, dtype.float32).reshape(-1, 1),  # (M, 1) <- (M,)
        }


class Slots(nn.Cell):
    """Order, ranks and places of assignments: what kinds of slot assignment share.

    Args:
        tokens: T. top_k: k. table: the slots of every expert.
        by_weight: order by gate weight, larger first, ties by position; else by position (choice-major).
    """

    def __init__(self, tokens: int, top_k: int, table: SlotTable, by_weight: bool) -> None:
        super().__init__()
        self.count = tokens * top_k
        self.experts = len(table.capacity)
        self.by_weight = by_weight
        self.start, self.first, self.second, self.capacity = (
            Tensor(np.append(column, 0).astype(np.int32))  # (E + 1,) <- (E,): nothing fits expert E
            for column in (table.start, table.first, table.second, table.capacity)
        )
        self.has_second = bool((table.first < table.capacity).any())
        self.permutation = SlotPermutation(self.count, table.slots)
        self.index = Tensor(np.arange(self.count, dtype=np.int32))

    def place(self, expert: Tensor, rank: Tensor) -> DispatchContext:
        """expert, rank: <int32>[N], each assignment's expert and its rank among those of it. Returns their slots."""
        slot = ops.gather(self.start, expert, 0) + rank  # (N,) <- (E + 1,), (N,)
        if self.has_second:
            first, second = ops.gather(self.first, expert, 0), ops.gather(self.second, expert, 0)
            slot = ops.select(rank < first, slot, second + rank - first)
        return self.permutation(slot, rank < self.capacity_of(expert))

    def capacity_of(self, expert: Tensor) -> Tensor:
        """Capacity of each one's expert, 0 for E: <int32>[N] <- <int32>[N]"""
        return ops.gather(self.capacity, expert, 0)  # (N,) <- (E + 1,), (N,)

    def order(self, weight: Tensor) -> Tensor:
        """Indices of assignments, first come first: <int32>[N] <- <float32>[T, k]"""
        if not self.by_weight:
            return self.index
        # Equal weights get equal levels, and the index makes keys unique: the order does not rest on how a sort treats
        # ties.
        weight = sortable_bits(ops.cast(choice_major(weight), dtype.float32))
        ascending, _ = ops.sort(weight)
        level = ops.searchsorted(ascending, weight)  # (N,) int64: how many weights are smaller
        key = level * self.count + (self.count - 1 - ops.cast(self.index, dtype.int64))
        ordered, _ = ops.sort(key, descending=True)
        return ops.cast(self.count - 1 - ops.floor_mod(ordered, self.count), dtype.int32)

    def rank(self, expert: Tensor, order: Tensor) -> Tensor:
        """How many assignments that come earlier in `order` <int32>[N] have the same `expert` <int32>[N]: <int32>[N]"""
        if not self.by_weight:
            return self._rank(expert)
        in_order = self._rank(ops.gather(expert, order, 0))  # (N,) <- (N,)
        return ops.scatter_nd(order.reshape(-1, 1), in_order, (self.count,))  # (N,) <- (N, 1), (N,)

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

    Args: as `Slots`.

    Inputs: expert <int32>[T, k], global ids, E where there is no assignment; weight <float32>[T, k], >= 0.
    Output: a `DispatchContext`.
    """

    def construct(self, expert: Tensor, weight: Tensor) -> DispatchContext:
        expert = choice_major(expert)
        return self.place(expert, self.rank(expert, self.order(weight)))


class PermuteRows(nn.Cell):
    """Copies rows to new places; places that nothing is sent to become 0.

    `source[i]` is the input row of output row i and `target` the inverse map; the masks are 0 where a row has no
    counterpart, whose index is then any valid one. As no input row is used twice, the gradient is the same gather with
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
        return self.gather(rows, source, 0) * ops.cast(source_mask, rows.dtype)  # (M, d) <- (N, d)

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
        """The gradient of `rows` from that of `out`, `dout`; zeros for `source`, `source_mask`, `target` and
        `target_mask`.
        """
        grad = self.gather(dout, target, 0) * ops.cast(target_mask, dout.dtype)  # (N, d) <- (M, d)
        return (
            grad,
            ops.zeros_like(source),
            ops.zeros_like(source_mask),
            ops.zeros_like(target),
            ops.zeros_like(target_mask),
        )
