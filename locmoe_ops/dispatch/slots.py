"""Which slot of which expert an assignment gets, and which are dropped.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments (choice-major: all first choices in token order,
then all second ones), E experts, C slots per expert from this rank.
"""

from typing import Dict

import numpy as np

from mindspore import Tensor, dtype, nn, ops


class SlotAssignment(nn.Cell):
    """Gives each assignment a slot of its expert, in priority order, until the expert's C slots are taken.

    1. Order the assignments: by position (choice-major), or by gate weight, larger first, ties by position.
    2. Count, per expert, the assignments ahead of each one: its rank.
    3. Ranks below C keep the slot `position_of[expert] * C + rank`; the others are dropped.
    4. Invert the map: the assignment that fills each slot.

    Inputs: expert <int32>[T, k], global ids; weight <float32>[T, k], >= 0.
    Output: a dict of slot <int32>[N] (0 where dropped), kept <float32>[N, 1], assignment <int32>[E*C] (0 where empty),
    filled <float32>[E*C, 1].
    """

    def __init__(self, tokens: int, top_k: int, capacity: int, position_of: np.ndarray, by_weight: bool) -> None:
        super().__init__()
        self.count = tokens * top_k
        self.experts = len(position_of)
        self.capacity = capacity
        self.by_weight = by_weight
        self.position_of = Tensor(np.asarray(position_of, np.int32))
        self.index = Tensor(np.arange(self.count, dtype=np.int32))

    def construct(self, expert: Tensor, weight: Tensor) -> Dict[str, Tensor]:
        position = ops.gather(self.position_of, expert.T.reshape(-1), 0)  # (N,) int32 <- (T, k)
        rank = self._rank_by_weight(position, weight) if self.by_weight else self._rank(position)
        kept = rank < self.capacity
        slot = position * self.capacity + rank
        slots = self.experts * self.capacity
        # Dropped assignments all land on one spare slot past the end, which is then cut off.
        landing = ops.select(kept, slot, ops.full_like(slot, slots)).reshape(-1, 1)
        filled_by = ops.scatter_nd(landing, self.index + 1, (slots + 1,))[:slots]
        filled = filled_by > 0
        return {
            "slot": ops.select(kept, slot, ops.zeros_like(slot)),
            "kept": ops.cast(kept, dtype.float32).reshape(-1, 1),
            "assignment": ops.select(filled, filled_by - 1, ops.zeros_like(filled_by)),
            "filled": ops.cast(filled, dtype.float32).reshape(-1, 1),
        }

    def _rank(self, position: Tensor) -> Tensor:
        """(N,) int32: how many earlier assignments have the same expert. Counts are exact in fp32 below 2**24."""
        one_hot = ops.one_hot(position, self.experts, Tensor(1.0, dtype.float32), Tensor(0.0, dtype.float32))
        ahead = ops.cumsum(one_hot, 0) - one_hot
        return ops.cast((ahead * one_hot).sum(1), dtype.int32)

    def _rank_by_weight(self, position: Tensor, weight: Tensor) -> Tensor:
        # Equal weights get equal levels, and the index makes keys unique: the order does not rest on how a sort treats ties.
        weight = ops.cast(weight.T.reshape(-1), dtype.float32)
        ascending, _ = ops.sort(weight)
        level = ops.searchsorted(ascending, weight)  # (N,) int64: how many weights are smaller
        key = level * self.count + (self.count - 1 - ops.cast(self.index, dtype.int64))
        ordered, _ = ops.sort(key, descending=True)
        order = ops.cast(self.count - 1 - ops.floor_mod(ordered, self.count), dtype.int32)
        rank = self._rank(ops.gather(position, order, 0))
        return ops.scatter_nd(order.reshape(-1, 1), rank, (self.count,))
