"""Re-picking: what finds no slot with its expert may take one of another expert, before it is dropped.

Shape legend: as `slots`.
"""

from typing import Dict

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.dispatch.slots import SlotAssignment, Slots, SlotTable, exclusive_cumsum
from locmoe_ops.routers.base import one_hot


class RepickingAssignment(Slots):
    """`SlotAssignment`, where an assignment without a slot is re-picked once: to its token's second expert.

    1. All assignments get slots as in `SlotAssignment`.
    2. Of each token the first choice that got none is re-picked; further ones are dropped, as the token has one second
       expert.
    3. Re-picked assignments get the slots that their new expert has left, in the order of step 1 (by weight: by the
       weight with which they lost), until these are taken; the others are dropped.

    Inputs: expert <int32>[T, k]; weight <float32>[T, k]; second <int32>[T], an expert that the token has not chosen, E:
        none.
    Output: as `SlotAssignment`, and expert <int32>[N], the one finally wanted, and repicked <float32>[N, 1], 1 where
    re-picked and kept.
    """

    def __init__(self, tokens: int, top_k: int, table: SlotTable, by_weight: bool) -> None:
        super().__init__(tokens, top_k, table, by_weight)
        self.top_k = top_k
        self.room = Tensor(np.asarray(table.capacity, np.float32))
        self.no_expert = Tensor(np.full(tokens * top_k, self.experts, np.int32))

    def construct(self, expert: Tensor, weight: Tensor, second: Tensor) -> Dict[str, Tensor]:
        expert = expert.T.reshape(-1)  # (N,) <- (T, k)
        order = self.order(weight)
        rank, chosen = self.rank(expert, order), one_hot(expert, self.experts)
        lost = ops.logical_and(rank >= self.capacity_of(expert), expert < self.experts)
        wanted = second if self.top_k == 1 else ops.tile(second, (self.top_k,))
        wanted = ops.select(self.first_of_token(lost), wanted, self.no_expert)
        taken = (one_hot(wanted, self.experts) * ops.minimum(chosen.sum(0), self.room)).sum(1)
        next_rank = self.rank(wanted, order) + ops.cast(taken, dtype.int32)
        found = next_rank < self.capacity_of(wanted)
        expert = ops.select(found, wanted, expert)
        context = self.place(expert, ops.select(found, next_rank, rank))
        context["expert"] = expert
        context["repicked"] = ops.cast(found, dtype.float32).reshape(-1, 1)
        return context

    def first_of_token(self, marked: Tensor) -> Tensor:
        """bool[N] <- bool[N]: the marked assignments of which no earlier choice of their token is marked."""
        if self.top_k == 1:
            return marked
        earlier = exclusive_cumsum(ops.cast(marked, dtype.float32).reshape(self.top_k, -1)).reshape(-1)
        return ops.logical_and(marked, earlier < 0.5)


def slot_assignment(tokens: int, top_k: int, table: SlotTable, drop_priority: str, overflow: str) -> nn.Cell:
    """drop_priority: `position` or `weight`, which assignments keep their slots; overflow: `drop` or `repick`, what the
    others do.
    """
    kind = RepickingAssignment if overflow == "repick" else SlotAssignment
    return kind(tokens, top_k, table, drop_priority == "weight")
