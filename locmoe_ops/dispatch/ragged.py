"""Ragged dispatch: every token reaches its expert, and between ranks only real rows travel.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments, P ranks of the expert-parallel group, E
experts, L = E / P experts a rank, R rows that a rank has room for, S rows of a local expert's region, d hidden size.
"""

from typing import Callable, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.geometry import DispatchSetup
from locmoe_ops.dispatch.slots import DispatchContext, SlotPermutation, exclusive_cumsum
from locmoe_ops.dispatch.specs.ragged import ragged_slots, room_for_rows
from locmoe_ops.errors import InputError
from locmoe_ops.functions import choice_major
from locmoe_ops.fused import TokenSort, TokenUnsort
from locmoe_ops.routers.base import one_hot


class RaggedDispatcher(Dispatcher):
    """No slots, hence no drops: unequal parts are exchanged.

    1. Sort the assignments by the place of their expert: rank after rank, expert after expert.
    2. Gather from every rank how many rows it has for each expert, which also tells whether more come than there is
       room for: the job ends then, by the host, as a compiled graph cannot (`beyond_limit` of the context).
    3. Exchange the rows; pad on arrival, not on the way.
    4. Copy what arrived into one region for each local expert; experts; copy back.
    5. Return the results, which arrive in the order in which their tokens left.

    What it costs: shapes are fixed, so the experts compute on L * S rows however few of them are real, with R rows
    received at most and S = min(R, P * T), as no token comes to an expert twice. Without a limit R is the worst case,
    all tokens of all ranks: then the experts compute on E / k times as many rows as arrive at an even load. With limit
    f, on L * f times as many. With Ascend's grouped products (`fused_experts`; compiled, not run) they compute on the
    rows that arrived, one expert's behind another's, and the limit is a matter of memory alone.

    Args:
        collectives: backend; its group `setup.placement.group` is the one that exchanges tokens.
        setup: what fixes the shapes; of `options`, `ragged_limit` counts: R over the N rows of an even load, at least
            1; and `fused_experts`, whether the experts take unequal groups.
        tag: names the collectives in errors and counters.

    Raises InputError for a limit below 1.
    """

    def __init__(self, collectives: Collectives, setup: DispatchSetup, tag: str) -> None:
        limit, placement = setup.options.ragged_limit, setup.placement
        if limit is not None and limit < 1.0:
            raise InputError(f"moe.dispatch.ragged_limit is {limit}, expected at least 1, or null")
        slots, self.room = ragged_slots(setup), room_for_rows(setup)
        assignment = SortedAssignment(setup.tokens, setup.top_k, placement.position_of, placement.num_experts)
        super().__init__(collectives, setup, slots, assignment, tag)
        self.ranks, self.local_experts, self.capacity = placement.ep, placement.experts_per_rank, slots.capacity
        self.index = setup.topology.group_of(placement.group, collectives.rank).index(collectives.rank)
        self.limits_rows = limit is not None
        self.grouped = setup.options.fused_experts
        region = None if self.grouped else self.capacity
        self.regions = Regions(self.ranks, self.local_experts, self.room, region)
        advice = "" if limit is None else f"that is {limit} times an even load, raise moe.dispatch.ragged_limit"
        rows = slots.send_rows
        self.gather_counts = collectives.all_gather(placement.group, f"{tag}/counts")
        self.dispatch_a2a = collectives.all_to_all_v(placement.group, f"{tag}/dispatch", rows, self.room, advice)
        self.combine_a2a = collectives.all_to_all_v(placement.group, f"{tag}/combine", self.room, rows, advice)

    def dispatch(
        self, x: Tensor, expert: Tensor, gate: Tensor, second: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Tuple[Tensor, DispatchContext]:
        """`x`, `expert`, `gate` and `second`: see `Dispatcher.dispatch`."""
        buffer, context = super().dispatch(x, expert, gate, second)
        return buffer, self.announced(context)

    def announced(self, context: DispatchContext) -> DispatchContext:
        """The `context`, with what every rank sends, and how many rows too many come here."""
        sent = context["counts"].reshape(1, self.ranks, self.local_experts)  # (1, P, L) <- (E,)
        if self.ranks > 1:
            sent = ops.stop_gradient(self.gather_counts(sent))  # (P, P, L)
        context["sent"] = sent
        arriving = ops.cast(sent[:, self.index], dtype.float32).sum()
        context["beyond_limit"] = ops.maximum(arriving - float(self.room), 0.0)
        return context

    def run_experts(self, buffer: Tensor, context: DispatchContext, experts: Callable[..., Tensor]) -> Tensor:
        """`buffer`, `context` and `experts`: see `Dispatcher.run_experts`; with `fused_experts` they are an
        `ExpertBank`.
        """
        sent = context["sent"]
        recv_counts = sent[:, self.index]  # (P, L): from each rank, for each expert here
        if self.ranks == 1:
            return self._with_experts(buffer, recv_counts, experts)
        rows = _whole(sent.sum(2))  # (P, P): from each rank to each
        arrived = self._with_experts(self.dispatch_a2a(buffer, rows), recv_counts, experts)
        return self.combine_a2a(arrived, ops.transpose(rows, (1, 0)))

    def _with_experts(self, rows: Tensor, counts: Tensor, experts: Callable[..., Tensor]) -> Tensor:
        """<float>[R, d] in the order of ranks -> the same, through the experts."""
        width, there = rows.shape[-1], self.regions(counts)
        regions = self.permute(  # (L * S, d) or, without gaps, (R, d) <- (R, d)
            rows, there["assignment"], there["slot_mask"], there["slot"], there["keep_mask"]
        )
        if self.grouped:
            regions = experts(regions, None, (there["sizes"], there["member"]))
        else:
            regions = experts(regions.reshape(self.local_experts, self.capacity, width))  # (L, S, d) <- (L * S, d)
            regions = regions.reshape(-1, width)  # (L * S, d) <- (L, S, d)
        return self.permute(  # (R, d) <- (L * S, d)
            regions, there["slot"], there["keep_mask"], there["assignment"], there["slot_mask"]
        )


class SortedAssignment(nn.Cell):
    """Sorts assignments by the position of their expert, without gaps; of one expert's, the earlier (choice-major) come
    first.

    Args:
        tokens: T. top_k: k. position_of: <int>[E]. experts: those at positions below it take part; None: E.

    Inputs: expert <int32>[T, k], global ids, E where there is no assignment; weight, unused.
    Output: a `DispatchContext` with M = N, nothing dropped of experts that take part, and counts.
    """

    def __init__(self, tokens: int, top_k: int, position_of: np.ndarray, experts: Optional[int] = None) -> None:
        super().__init__()
        self.count, self.experts = tokens * top_k, len(position_of) if experts is None else experts
        self.position = Tensor(np.append(position_of, self.experts).astype(np.int32))
        self.permutation = SlotPermutation(self.count, self.count)

    def construct(self, expert: Tensor, weight: Tensor) -> DispatchContext:
        position = ops.gather(self.position, choice_major(expert), 0)  # (N,) <- (T, k)
        chosen = one_hot(position, self.experts)  # (N, E)
        counts = chosen.sum(0)
        start = ops.cumsum(counts, 0) - counts
        slot = ((exclusive_cumsum(chosen) + start) * chosen).sum(1)
        context = self.permutation(_whole(slot), position < self.experts)
        context["counts"] = _whole(counts)
        return context


class Regions(nn.Cell):
    """From the order of arrival (rank after rank, in each expert after expert) to one region of S rows for each expert,
    or to one expert's rows behind another's.

    Args:
        ranks: P. local_experts: L. room: R. region: S; None: there are no gaps, each region is as long as it need be.

    Inputs: counts <int32>[P, L]; rows beyond R are left out. Output: a `DispatchContext`, with R received rows for
    assignments and L * S slots; without gaps R slots, and also sizes <int64>[L], rows of each expert, and member
    <float32>[R, L], 1 where a slot is an expert's.
    """

    def __init__(self, ranks: int, local_experts: int, room: int, region: Optional[int]) -> None:
        super().__init__()
        self.shape = (ranks, local_experts)
        self.pairs, self.room, self.gaps = ranks * local_experts, float(room), region is not None
        self.permutation = SlotPermutation(room, room if region is None else local_experts * region)
        self.first = Tensor(np.arange(local_experts, dtype=np.float32) * (region or 0))
        self.index = Tensor(np.arange(room, dtype=np.int32))
        self.column = Tensor(np.arange(room, dtype=np.float32).reshape(room, 1))  # (R, 1) <- (R,)

    def construct(self, counts: Tensor) -> DispatchContext:
        arriving = ops.cast(counts, dtype.float32).reshape(-1)  # (P * L,) <- (P, L)
        ends = ops.cumsum(arriving, 0)  # (P * L,): where the rows of each pair of rank and expert end on arrival
        starts = ops.minimum(ends - arriving, self.room)
        ends = ops.minimum(ends, self.room)
        taken = (ends - starts).reshape(self.shape)  # (P, L) <- (P * L,)
        sizes = taken.sum(0)  # (L,)
        last = ops.cumsum(sizes, 0)
        first = self.first if self.gaps else last - sizes
        shift = (first + exclusive_cumsum(taken)).reshape(-1) - starts  # (P * L,) <- (P, L)
        whole_ends = _whole(ends)
        # (R,): a pair without rows ends where it begins and is passed over
        pair = ops.searchsorted(whole_ends, self.index, right=True)
        slot = self.index + ops.gather(_whole(shift), ops.minimum(pair, self.pairs - 1), 0)  # (R,) <- (P * L,)
        context = self.permutation(slot, self.index < whole_ends[-1])
        if not self.gaps:
            inside = ops.logical_and(self.column >= first, self.column < last)  # (R, L) <- (R, 1), (L,)
            context["sizes"] = ops.cast(sizes, dtype.int64)
            context["member"] = ops.cast(inside, dtype.float32)
        return context


def _whole(numbers: Tensor) -> Tensor:
    """<int32> <- whole numbers of another type, below 2**24."""
    return ops.cast(numbers, dtype.int32)


class FusedRaggedDispatcher(RaggedDispatcher):
    """`RaggedDispatcher` in which one kernel copies and sorts the assignments, and one scales and sums their results.

    Of one expert's tokens the earlier come first whatever choice it was, where the plain form takes all first choices
    first. Nothing is dropped, so the order is of no consequence.

    Args:
        collectives, setup, tag: as `RaggedDispatcher`.
    """

    def __init__(self, collectives: Collectives, setup: DispatchSetup, tag: str) -> None:
        super().__init__(collectives, setup, tag)
        self.sort = TokenSort()
        self.unsort = TokenUnsort()

    def dispatch(
        self, x: Tensor, expert: Tensor, gate: Tensor, second: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Tuple[Tensor, DispatchContext]:
        """`x`, `expert` and `gate`: see `Dispatcher.dispatch`; `second` is not used."""
        context = self.announced(self.slots(expert, gate))
        rows, order = self.sort(x, ops.gather(self.slots.position, expert, 0))  # (N, d) <- (T, d), (T, k)
        context["order"] = order
        return rows, context

    def combine(
        self, buffer: Tensor, context: DispatchContext, scale: Tensor, second: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Tensor:
        """`buffer`, `context` and `scale`: see `Dispatcher.combine`; `second` is not used."""
        return self.unsort(buffer, context["order"], ops.cast(scale, buffer.dtype))


def build(collectives: Collectives, setup: DispatchSetup, tag: str) -> RaggedDispatcher:
    """See `RaggedDispatcher`, whose arguments `collectives`, `setup` and `tag` are."""
    return (FusedRaggedDispatcher if setup.options.fused_permute else RaggedDispatcher)(collectives, setup, tag)
