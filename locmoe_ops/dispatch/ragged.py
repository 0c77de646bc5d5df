"""Ragged dispatch: every token reaches its expert, and between ranks only real rows travel.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments, P ranks of the expert-parallel group, E
experts, L = E / P experts a rank, R rows that a rank has room for, S rows of a local expert's region, d hidden size.
"""

import math
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.slots import exclusive_cumsum, slot_permutation
from locmoe_ops.errors import InputError
from locmoe_ops.fused import TokenSort, TokenUnsort
from locmoe_ops.routers.base import one_hot
from locmoe_ops.topology import Placement


class RaggedDispatcher(Dispatcher):
    """No slots, hence no drops: unequal parts are exchanged.

    1. Sort the assignments by the place of their expert: rank after rank, expert after expert.
    2. Tell every rank how many rows its experts get from here, in an all-to-all of numbers.
    3. Exchange the rows; pad on arrival, not on the way.
    4. Copy what arrived into one region for each local expert; experts; copy back.
    5. Return the results, which arrive in the order in which their tokens left.

    What it costs: shapes are fixed, so the experts compute on L * S rows however few of them are real, with R rows
    received at most and S = min(R, P * T), as no token comes to an expert twice. Without a limit R is the worst case,
    all tokens of all
    ranks: then the experts compute on E / k times as many rows as arrive at an even load. With limit f, on L * f times
        as many.

    Args:
        collectives: backend; its group `placement.group` is the one that exchanges tokens.
        placement: which rank of the group holds which expert; one that none holds gets no token.
        tokens, top_k: as `Dispatcher`. A token's choices are distinct.
        limit: R over the N rows of an even load, at least 1; None: the worst case, which cannot be exceeded.
        tag: names the collectives in errors and counters.
        limit_name: what an error tells the user to raise. More than R rows end the job, see `Collectives.all_to_all_v`.

    Raises InputError for a limit below 1.
    """

    def __init__(
        self,
        collectives: Collectives,
        placement: Placement,
        tokens: int,
        top_k: int,
        limit: Optional[float],
        tag: str,
        limit_name: str = "limit",
    ) -> None:
        super().__init__(tokens, top_k, SortedAssignment(tokens, top_k, placement.position_of, placement.num_experts))
        if limit is not None and limit < 1.0:
            raise InputError(f"{limit_name} is {limit}, expected at least 1, or none")
        self.ranks, self.local_experts = placement.ep, placement.experts_per_rank
        rows, worst = tokens * top_k, placement.ep * tokens * min(top_k, placement.experts_per_rank)
        room = rows if self.ranks == 1 else worst if limit is None else min(worst, math.ceil(rows * limit))
        self.capacity = self.expert_rows = min(room, self.ranks * tokens)
        self.regions = Regions(self.ranks, self.local_experts, room, self.capacity)
        self.tell = collectives.all_to_all(placement.group, f"{tag}/counts")
        advice = "" if limit is None else f"that is {limit} times an even load, raise {limit_name}"
        self.send = collectives.all_to_all_v(placement.group, f"{tag}/dispatch", rows, room, advice)
        self.give_back = collectives.all_to_all_v(placement.group, f"{tag}/combine", room, rows, advice)

    def carry(self, buffer: Tensor, context: Dict[str, Tensor], experts: Callable[[Tensor], Tensor]) -> Tensor:
        counts = context["counts"].reshape(self.ranks, self.local_experts)
        if self.ranks == 1:
            return self._with_experts(buffer, counts, experts)
        told = ops.stop_gradient(self.tell(counts))  # (P, L): from each rank, for each expert held here
        leave, arrive = _whole(counts.sum(1)), _whole(told.sum(1))
        arrived = self._with_experts(self.send(buffer, leave, arrive), told, experts)
        return self.give_back(arrived, arrive, leave)

    def _with_experts(self, rows: Tensor, counts: Tensor, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """<float>[R, d] in the order of ranks -> the same, through the experts."""
        width, there = rows.shape[-1], self.regions(counts)
        regions = self.permute(rows, there["assignment"], there["filled"], there["slot"], there["kept"])
        regions = experts(regions.reshape(self.local_experts, self.capacity, width)).reshape(-1, width)
        return self.permute(regions, there["slot"], there["kept"], there["assignment"], there["filled"])


class SortedAssignment(nn.Cell):
    """Sorts assignments by the position of their expert, without gaps; of one expert's, the earlier (choice-major) come
    first.

    Args: tokens: T. top_k: k. position_of <int>[E]; experts: those at positions below it take part (None: E).

    Inputs: expert <int32>[T, k], global ids, E where there is no assignment; weight, unused.
    Output: as `SlotAssignment`, with M = N and nothing dropped of experts that take part, and counts <int32>[experts],
    by position.
    """

    def __init__(self, tokens: int, top_k: int, position_of: np.ndarray, experts: Optional[int] = None) -> None:
        super().__init__()
        self.count, self.experts = tokens * top_k, len(position_of) if experts is None else experts
        self.position = Tensor(np.append(position_of, self.experts).astype(np.int32))
        self.index = Tensor(np.arange(self.count, dtype=np.int32))

    def construct(self, expert: Tensor, weight: Tensor) -> Dict[str, Tensor]:
        position = ops.gather(self.position, expert.T.reshape(-1), 0)  # (N,) <- (T, k)
        chosen = one_hot(position, self.experts)
        counts = chosen.sum(0)
        start = ops.cumsum(counts, 0) - counts
        slot = ((exclusive_cumsum(chosen) + start) * chosen).sum(1)
        context = slot_permutation(_whole(slot), position < self.experts, self.index, self.count)
        context["counts"] = _whole(counts)
        return context


class Regions(nn.Cell):
    """From the order of arrival (rank after rank, in each expert after expert) to one region of S rows for each expert.

    Inputs: counts <int32>[P, L]. Output: as `SlotAssignment`, with R received rows for assignments and L * S slots.
    """

    def __init__(self, ranks: int, local_experts: int, room: int, region: int) -> None:
        super().__init__()
        self.slots = local_experts * region
        self.pairs = ranks * local_experts
        self.first = Tensor(np.arange(local_experts, dtype=np.float32) * region)
        self.index = Tensor(np.arange(room, dtype=np.int32))

    def construct(self, counts: Tensor) -> Dict[str, Tensor]:
        counts = ops.cast(counts, dtype.float32)
        flat = counts.reshape(-1)
        ends = ops.cumsum(flat, 0)  # (P * L,): where the rows of each pair of rank and expert end on arrival
        shift = (self.first + exclusive_cumsum(counts)).reshape(-1) - (ends - flat)
        ends = _whole(ends)
        pair = ops.searchsorted(
            ends, self.index, right=True
        )  # (R,): a pair without rows ends where it begins and is passed over
        last = ops.full_like(pair, self.pairs - 1)
        slot = self.index + ops.gather(_whole(shift), ops.minimum(pair, last), 0)
        return slot_permutation(slot, self.index < ends[-1], self.index, self.slots)


def _whole(numbers: Tensor) -> Tensor:
    """<int32> <- whole numbers of another type, below 2**24."""
    return ops.cast(numbers, dtype.int32)


class FusedRaggedDispatcher(RaggedDispatcher):
    """`RaggedDispatcher` in which one kernel copies and sorts the assignments, and one scales and sums their results.

    Of one expert's tokens the earlier come first whatever choice it was, where the plain form takes all first choices
    first. Nothing is dropped, so the order is of no consequence.

    Args, inputs and outputs: as `RaggedDispatcher`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sort = TokenSort()
        self.unsort = TokenUnsort()

    def move(
        self,
        x: Tensor,
        expert: Tensor,
        gate: Tensor,
        scale: Tensor,
        experts: Callable[[Tensor], Tensor],
        second: Optional[Tuple[Tensor, Tensor]] = None,
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        context = self.slots(expert, gate)
        rows, order = self.sort(x, ops.gather(self.slots.position, expert, 0))
        rows = self.carry(rows, context, experts)
        return self.unsort(rows, order, ops.cast(scale, rows.dtype)), context
