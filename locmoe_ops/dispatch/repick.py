"""Re-picking: what finds no slot with its expert may take one of another expert, before it is dropped.

Shape legend: T tokens, k choices a token, N = k * T assignments (choice-major), E experts.
"""

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.dispatch.geometry import DispatchSetup, SlotTable
from locmoe_ops.dispatch.slots import DispatchContext, SlotAssignment, Slots, exclusive_cumsum
from locmoe_ops.functions import choice_major
from locmoe_ops.routers.base import one_hot


class RepickingAssignment(Slots):
    """`SlotAssignment`, where an assignment without a slot is re-picked once: to its token's second expert.

    1. All assignments get slots as in `SlotAssignment`.
    2. Of each token the first choice that got none is re-picked; further ones are dropped, as the token has one second
       expert.
    3. Re-picked assignments get the slots that their new expert has left, in the order of step 1 (by weight: by the
       weight with which they lost), until these are taken; the others are dropped.

    Args:
        tokens, top_k, table, by_weight: as `Slots`.

    Inputs: expert <int32>[T, k]; weight <float32>[T, k]; second <int32>[T], an expert that the token has not chosen, E:
        none.
    Output: a `DispatchContext`, with expert and repicked.
    """

    def __init__(self, tokens: int, top_k: int, table: SlotTable, by_weight: bool) -> None:
        super().__init__(tokens, top_k, table, by_weight)
        self.top_k = top_k
        self.room = Tensor(np.asarray(table.capacity, np.float32))
        self.no_expert = Tensor(np.full(tokens * top_k, self.experts, np.int32))

    def construct(self, expert: Tensor, weight: Tensor, second: Tensor) -> DispatchContext:
        expert = choice_major(expert)
        order = self.order(weight)
        rank, chosen = self.rank(expert, order), one_hot(expert, self.experts)
        lost = ops.logical_and(rank >= self.capacity_of(expert), expert < self.experts)
        wanted = second if self.top_k == 1 else ops.tile(second, (self.top_k,))  # (N,) <- (T,)
        wanted = ops.select(self.first_of_token(lost), wanted, self.no_expert)
        taken = (one_hot(wanted, self.experts) * ops.minimum(chosen.sum(0), self.room)).sum(1)
        next_rank = self.rank(wanted, order) + ops.cast(taken, dtype.int32)
        found = next_rank < self.capacity_of(wanted)
        expert = ops.select(found, wanted, expert)
        context = self.place(expert, ops.select(found, next_rank, rank))
        context["expert"] = expert
        context["repicked"] = ops.cast(found, dtype.float32).reshape(-1, 1)  # (N, 1) <- (N,)
        return context

    def first_of_token(self, marked: Tensor) -> Tensor:
        """bool[N] <- bool[N]: the marked assignments of which no earlier choice of their token is marked."""
        if self.top_k == 1:
            return marked
        # (N,) <- (k, T) <- (N,)
        earlier = exclusive_cumsum(ops.cast(marked, dtype.float32).reshape(self.top_k, -1)).reshape(-1)
        return ops.logical_and(marked, earlier < 0.5)


def slot_assignment(setup: DispatchSetup, table: SlotTable) -> nn.Cell:
    """The Cell that gives slots as `setup.options` says: in which order, and what happens on overflow.

    Args:
        setup: tokens, choices and options. table: the slots of every expert.
    """
    kind = RepickingAssignment if setup.options.overflow == "repick" else SlotAssignment
    return kind(setup.tokens, setup.top_k, table, setup.options.drop_priority == "weight")
