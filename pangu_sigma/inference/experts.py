"""Experts at inference: no token is dropped, and the work follows the tokens, not the slots kept free for them.

Training gives every expert the same number of slots. Here, where none may be missing and all tokens might go to one
expert, that would be as many slots as tokens for each expert. Blocks of a few rows with one expert each do with far
fewer.

Ranks of an expert-parallel group all have the same tokens. Each computes what its own experts make of them, and the sum
over the group is the layer's output: what is spread is the memory of the experts, without a token that moves.

Shape legend: T tokens, k choices, N = k * T assignments (choice-major), E experts, L of them held here, c rows of a
block, M blocks, d hidden size.
"""

from typing import Dict, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.slots import DispatchContext, PermuteRows, exclusive_cumsum, slot_permutation
from locmoe_ops.experts import ExpertBank
from locmoe_ops.moe import MoEFeedForward
from locmoe_ops.routers.base import one_hot
from locmoe_ops.topology import ExpertPlacement

# What the choice of a block size weighs: a copied weight is read, written and read again; a product of a weight and one
# row takes about a twentieth of the time of reading the weight (10 GB/s and 100 GFLOP/s). Only speed hangs on them.
_COPY = 3.0
_ROW = 0.05


def most_blocks(assignments: int, experts: int, size: int) -> int:
    """M: blocks of `size` rows that are enough wherever the assignments go, none of them shared by two experts."""
    return min(assignments, (assignments + min(experts, assignments) * (size - 1)) // size)


def block_size(assignments: int, experts: int) -> int:
    """c: rows of a block for the least work (see above); 0: none, all experts with a slot for every token."""
    sizes = [size for size in (1, 4, 16, 64, 256) if size <= assignments]
    costs = {size: most_blocks(assignments, experts, size) * (_COPY + _ROW * size) for size in sizes}
    best = min(costs, key=lambda size: costs[size])
    return best if costs[best] < experts * (1.0 + _ROW * assignments) else 0


class BlockExperts(nn.Cell):
    """Rows through their experts, block by block; 0 for rows whose expert is on another rank.

    1. Rank of each assignment among those of its expert; with it, its place in the expert's blocks.
    2. Rows to blocks, and the weights of each block's expert beside it.
    3. The experts' network, as one batched product; rows back to their assignments.

    With blocks of one row, step 1 has nothing to do.

    Args:
        held: L. size: c.

    Inputs: rows <float>[N, d]; held <int32>[N], each one's row of the bank, L where the expert is elsewhere; bank.
    Output: <compute_dtype>[N, d].
    """

    def __init__(self, held: int, assignments: int, size: int) -> None:
        super().__init__(auto_prefix=False)
        self.size = size
        self.held = held
        self.blocks = most_blocks(assignments, held, size)
        self.index = Tensor(np.arange(assignments, dtype=np.int32))
        self.numbers = Tensor(np.arange(self.blocks, dtype=np.float32).reshape(-1, 1))
        self.permute = PermuteRows()

    def construct(self, rows: Tensor, held: Tensor, bank: ExpertBank) -> Tensor:
        here = held < self.held
        if self.size == 1:
            found = self._feed(rows.expand_dims(1), ops.minimum(held, self.held - 1), bank).reshape(rows.shape)
        else:
            places, block_expert = self._places(held, here)
            blocks = self.permute(rows, places["assignment"], places["slot_mask"], places["slot"], places["keep_mask"])
            blocks = self._feed(blocks.reshape(self.blocks, self.size, -1), block_expert, bank)
            found = ops.gather(blocks.reshape(-1, rows.shape[-1]), places["slot"], 0)
        return found * ops.cast(here, found.dtype).reshape(-1, 1)

    def _places(self, held: Tensor, here: Tensor) -> Tuple[DispatchContext, Tensor]:
        """The map into blocks, as `slot_permutation` has it, and the experts of the blocks <int32>[M] (any, where a
        block is empty).
        """
        member = one_hot(held, self.held)  # (N, L)
        rank = (exclusive_cumsum(member) * member).sum(1)
        used = ops.ceil(member.sum(0) / self.size)  # (L,) blocks
        end = ops.cumsum(used, 0)
        slot = (member * (end - used)).sum(1) * self.size + rank
        block_expert = ops.cast(self.numbers >= end, dtype.int32).sum(1)  # experts whose blocks all lie before this one
        places = slot_permutation(ops.cast(slot, dtype.int32), here, self.index, self.blocks * self.size)
        return places, ops.minimum(block_expert, self.held - 1)

    def _feed(self, x: Tensor, expert: Tensor, bank: ExpertBank) -> Tensor:
        """<float>[M, c, d] -> the same, by expert <int32>[M]."""
        kind = bank.compute_dtype
        w_in, b_in = ops.gather(bank.w_in, expert, 0), ops.gather(bank.b_in, expert, 0)
        w_out, b_out = ops.gather(bank.w_out, expert, 0), ops.gather(bank.b_out, expert, 0)
        hidden = bank.act(bank.matmul(ops.cast(x, kind), ops.cast(w_in, kind)) + ops.cast(b_in, kind))
        return bank.matmul(hidden, ops.cast(w_out, kind)) + ops.cast(b_out, kind)


class SparseInference(nn.Cell):
    """A trained sparse layer for `tokens` tokens at a time, none of them dropped.

    The router decides as in evaluation. A token's experts do not depend on the other tokens, nor does its result.

    Args:
        collectives: of the `ep` group that the experts are spread over; its ranks must all have the same tokens. tag:
            of its sum.

    Inputs and first output: as `MoEFeedForward`.
    """

    def __init__(
        self, layer: MoEFeedForward, placement: ExpertPlacement, tokens: int, collectives: Collectives, tag: str
    ) -> None:
        super().__init__(auto_prefix=False)
        self.layer = layer
        self.top_k = layer.top_k
        experts = layer.experts.local_experts
        self.held = len(experts)
        rows = np.full(placement.num_experts, self.held, np.int32)  # of the bank, by global id; L: elsewhere
        rows[list(experts)] = np.arange(self.held)
        self.row_of = Tensor(rows)
        assignments = tokens * self.top_k
        size = block_size(assignments, self.held)
        self.by_blocks = size > 0
        self.blocks = BlockExperts(self.held, assignments, size) if size else nn.Identity()
        self.sum = collectives.all_reduce("ep", tag)

    def construct(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        routing = self.layer.routing(x, tokens)
        held = ops.gather(self.row_of, routing["expert"].T.reshape(-1), 0)  # (N,)
        weight = routing["weight"]
        scale = (weight if self.layer.scale_by_gate else ops.full_like(weight, 1.0 / self.top_k)).T.reshape(
            -1, 1
        )  # (N, 1)
        y = self._some(x, held, scale) if self.by_blocks else self._all(x, held, scale)
        return self.sum(y)

    def _some(self, x: Tensor, held: Tensor, scale: Tensor) -> Tensor:
        """Each assignment through its expert."""
        rows = x if self.top_k == 1 else ops.tile(x, (self.top_k, 1))  # (N, d) <- (T, d)
        rows = self.blocks(rows, held, self.layer.experts)
        return self._over_choices(rows * ops.cast(scale, rows.dtype))

    def _all(self, x: Tensor, held: Tensor, scale: Tensor) -> Tensor:
        """Each token through each expert, for few experts and many tokens."""
        rows = self.layer.experts(ops.tile(x.expand_dims(0), (self.held, 1, 1)))  # (L, T, d)
        scale = self._over_choices(one_hot(held, self.held) * scale)  # (T, L)
        return (rows * ops.cast(scale.T.expand_dims(2), rows.dtype)).sum(0)

    def _over_choices(self, of_assignments: Tensor) -> Tensor:
        """(T, n) <- (N, n), summed."""
        if self.top_k == 1:
            return of_assignments
        return of_assignments.reshape(self.top_k, -1, of_assignments.shape[-1]).sum(0)
