"""Experts at inference: no token is dropped, and the work follows the tokens, not the slots kept free for them.

Training gives every expert the same number of slots. Here, where none may be missing and all tokens might go to one
expert, that would be as many slots as tokens for each expert. Blocks of a few rows with one expert each do with far
fewer.

Ranks of an expert-parallel group all have the same tokens. Each computes what its own experts make of them, and the sum
over the group is the layer's output: what is spread is the memory of the experts, without a token that moves.

Shape legend: T tokens, k choices, N = k * T assignments (choice-major), E experts, L of them held here, c rows of a
block, M blocks, d hidden size.
"""

from typing import Callable, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.geometry import DispatchSetup, LayerSlots
from locmoe_ops.dispatch.slots import DispatchContext, SlotPermutation, exclusive_cumsum
from locmoe_ops.experts import ExpertBank
from locmoe_ops.functions import choice_major
from locmoe_ops.routers.base import one_hot
from locmoe_ops.topology import Placement

# What the choice of a block size weighs: a copied weight is read, written and read again; a product of a weight and one
# row takes about a twentieth of the time of reading the weight (10 GB/s and 100 GFLOP/s). Only speed hangs on them.
_COPY = 3.0
_ROW = 0.05


def most_blocks(assignments: int, experts: int, size: int) -> int:
    """M: how many blocks are enough wherever the assignments go, none of them shared by two experts.

    Args:
        assignments: N. experts: L. size: c.
    """
    return min(assignments, (assignments + min(experts, assignments) * (size - 1)) // size)


def block_size(assignments: int, experts: int) -> int:
    """c: rows of a block for the least work (see above); 0: none, all experts with a slot for every token."""
    sizes = [size for size in (1, 4, 16, 64, 256) if size <= assignments]
    costs = {size: most_blocks(assignments, experts, size) * (_COPY + _ROW * size) for size in sizes}
    best = min(costs, key=lambda size: costs[size])
    return best if costs[best] < experts * (1.0 + _ROW * assignments) else 0


class BlockSlots(nn.Cell):
    """Places of assignments in blocks of c rows, each with one expert; none is dropped.

    Where c is 0, each expert held here has one block with a row for every token, whether or not it was chosen: for few
    experts and many tokens. Where c is 1, assignment i has block i. Else:

    1. Rank of each assignment among those of its expert; with it, its place in the expert's blocks.
    2. The map into blocks and its inverse, and the expert of each block.

    Args:
        experts: global ids of the experts held here, L of them. num_experts: E.
        tokens: T. top_k: k. size: c.

    Inputs: expert <int32>[T, k], global ids, E where there is none; gate, unused: nothing is dropped. Output: as
    `SlotAssignment`, of M * c slots, keep_mask being 0 where the expert is on another rank; and block_expert
    <int32>[M], which of those held here a block belongs to (any, where the block is empty).
    """

    def __init__(self, experts: Tuple[int, ...], num_experts: int, tokens: int, top_k: int, size: int) -> None:
        super().__init__()
        self.held, self.size = len(experts), size
        count = tokens * top_k
        place = np.full(num_experts + 1, self.held, np.int32)  # in the bank, by global id; L: elsewhere, or no expert
        place[list(experts)] = np.arange(self.held)
        self.place = Tensor(place)
        self.index = Tensor(np.arange(count, dtype=np.int32))
        self.blocks = most_blocks(count, self.held, size) if size else self.held
        self.permutation = SlotPermutation(count, self.blocks * size)
        self.block_numbers = Tensor(np.arange(self.blocks, dtype=np.float32).reshape(-1, 1))  # (M, 1)
        # What fills the slots where they are fixed, (M * c,): all tokens for each expert, or one assignment a block.
        source = np.tile(np.arange(tokens), self.held) if size == 0 else np.arange(count)  # (L * T,) <- (T,)
        self.source = Tensor(source.astype(np.int32))
        self.all_filled = Tensor(np.ones((len(source), 1), np.float32))
        self.token = Tensor(np.tile(np.arange(tokens), top_k).astype(np.int32))  # (N,) <- (T,), of each assignment
        self.tokens = tokens

    def construct(self, expert: Tensor, gate: Tensor) -> DispatchContext:
        held = ops.gather(self.place, choice_major(expert), 0)  # (N,) <- (E + 1,), (T, k)
        here, nearest = held < self.held, ops.minimum(held, self.held - 1)
        if self.size > 1:
            return self._places(held, here)
        return {
            "slot": self.index if self.size == 1 else nearest * self.tokens + self.token,
            "keep_mask": ops.cast(here, dtype.float32).reshape(-1, 1),  # (N, 1) <- (N,)
            "assignment": self.source,
            "slot_mask": self.all_filled,
            "block_expert": nearest,
        }

    def _places(self, held: Tensor, here: Tensor) -> DispatchContext:
        """held <int32>[N], L where the expert is elsewhere; here bool[N] -> the output."""
        member = one_hot(held, self.held)  # (N, L)
        rank = (exclusive_cumsum(member) * member).sum(1)  # (N,)
        used = ops.ceil(member.sum(0) / self.size)  # (L,) blocks
        end = ops.cumsum(used, 0)
        slot = (member * (end - used)).sum(1) * self.size + rank  # (N,)
        places = self.permutation(ops.cast(slot, dtype.int32), here)
        before = ops.cast(self.block_numbers >= end, dtype.int32).sum(1)  # (M,): experts whose blocks lie before it
        places["block_expert"] = ops.minimum(before, self.held - 1)
        return places


class InferenceDispatcher(Dispatcher):
    """In the place of a trained layer's dispatcher (see `MoEFeedForward`): all of its ranks have the same tokens, none
    is dropped, and none moves. A token's experts do not depend on the other tokens, nor does its result.

    Args:
        slots: places of the assignments in blocks. setup: what fixes the shapes.
        collectives: of the `ep` group that the experts are spread over. tag: of its sum.
    """

    def __init__(self, slots: BlockSlots, setup: DispatchSetup, collectives: Collectives, tag: str) -> None:
        rows = slots.blocks * (slots.size or slots.tokens)
        super().__init__(collectives, setup, LayerSlots(slots.size, 0, (rows,), rows), slots, tag)
        self.blocks = slots.blocks
        self.by_block = slots.size > 0
        self.sum = collectives.all_reduce("ep", tag)

    def forward(
        self,
        x: Tensor,
        expert: Tensor,
        gate: Tensor,
        scale: Tensor,
        experts: Callable[..., Tensor],
        second: Optional[Tuple[Tensor, Tensor]] = None,
    ) -> Tuple[Tensor, DispatchContext]:
        """As `Dispatcher`'s, with the same x, expert, gate, scale, experts and second; summed over the group."""
        y, context = super().forward(x, expert, gate, scale, experts, second)
        return self.sum(y), context

    def run_experts(self, buffer: Tensor, context: DispatchContext, experts: Callable[..., Tensor]) -> Tensor:
        """<compute_dtype>[M * c, d] <- `buffer` <float>[M * c, d]: each block through its expert of `experts`, an
        `ExpertBank`; `context`: of `BlockSlots`.
        """
        blocks = buffer.reshape(self.blocks, -1, buffer.shape[-1])  # (M, c, d) <- (M * c, d)
        y = experts(blocks, context["block_expert"]) if self.by_block else experts(blocks)
        return y.reshape(buffer.shape)  # (M * c, d) <- (M, c, d)


def inference_dispatcher(
    experts: ExpertBank, placement: Placement, tokens: int, top_k: int, collectives: Collectives, tag: str
) -> InferenceDispatcher:
    """The dispatcher for a sparse layer that takes `tokens` tokens at a time, with blocks of the size that costs least.

    Args:
        experts: the layer's, as far as they are held here. placement: of all of them.
        tokens: T. top_k: k.
        collectives, tag: see `InferenceDispatcher`.
    """
    held = experts.local_experts
    size = block_size(tokens * top_k, len(held))
    setup = DispatchSetup(collectives.topology, placement, tokens, top_k)
    return InferenceDispatcher(BlockSlots(held, placement.num_experts, tokens, top_k, size), setup, collectives, tag)
