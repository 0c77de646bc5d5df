"""Hierarchical dispatch with one copy a node: a token that wants several experts of another node travels there once.

Token deduplication as in HierMoE (arXiv 2508.09591), and X-MoE's pilots (arXiv 2508.13337); DeepSeek-V3 (arXiv
2412.19437) forwards inside the node likewise. A token's way to another node:

1. At home each assignment gets a slot of its expert, as in hierarchical dispatch: which are dropped there does not
   change. Of a token's assignments to experts of one node the first, in the order of priority, is the pilot.
2. Pilots get one of the C slots that their node has for copies, in the same order, until these are taken. With a pilot
   that gets none, all of its token's assignments to the node are dropped.
3. Copies travel along the rail, each with its token's k weights. Beside them travels a map: which copy, and which of
   its weights, each of the experts' slots is for. Padded slots of a map cost 4 bytes, those of tokens 4 * d.
4. On arrival copies are expanded into the experts' slots, and these are exchanged inside the node.
5. Results come back inside the node, are weighed there, and those of a copy are summed: the weights had to travel.
6. Sums travel home along the rail. The token adds up its nodes' sums and its results from the own node.

Gradients go the same ways back: that of a weight beside that of the copy that brought it.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments (choice-major), V nodes of the
expert-parallel group, R of its ranks on each, E experts, L = E / (V * R) experts a rank, d hidden size. Each rank sends
an expert of its own node up to C_in tokens, any other up to C_out, and each other node up to C copies. M_in = R * L *
C_in and V * C rows of the send buffer are for either, M of both. X = R * L * C_out slots are for the assignments of one
rank to a node, Y = (V - 1) * X for those of all other nodes' ranks on a rail.
"""

from typing import Callable, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.geometry import DispatchSetup, LayerSlots, two_tier_slots, uniform_slots
from locmoe_ops.dispatch.hierarchical import TwoTierDispatcher
from locmoe_ops.dispatch.repick import slot_assignment
from locmoe_ops.dispatch.slots import DispatchContext, Slots
from locmoe_ops.dispatch.specs.node_dedup import node_dedup_slots


class NodeDedupDispatcher(TwoTierDispatcher):
    """See the head of this file. Own-node assignments stay out of all this: they have the intra-node tier alone.

    Args:
        collectives: backend; the parts of its group `setup.placement.group` on nodes and on rails exchange tokens.
        setup: what fixes the shapes, see `node_dedup_slots`; of `options` all but `ragged_limit` and `group_wise`
            count.
        tag: names the collectives in errors and counters.

    Raises InputError for more than two chunks.
    """

    def __init__(self, collectives: Collectives, setup: DispatchSetup, tag: str) -> None:
        slots = node_dedup_slots(setup)
        table = two_tier_slots(setup, collectives.rank, slots.intra_node, slots.capacity, in_both=False)
        super().__init__(collectives, setup, slots, slot_assignment(setup, table), tag)
        self.counts_copies = True
        self.copies = slots.copies
        self.no_copies = Tensor(0.0, dtype.float32)
        if self.copies == 0:
            return
        self.copy_slots = CopySlots(setup, slots)
        self.map_a2a = collectives.all_to_all(setup.inter_node, f"{tag}/copies")
        others = np.delete(np.arange(self.nodes), setup.node_of(collectives.rank)).astype(np.int32)
        self.others = Tensor(others)
        self.first_weight = Tensor((others * self.copies * self.top_k).reshape(-1, 1))  # (V - 1, 1) <- (V - 1,)
        self.expand, self.weights_of_slots = ExpandRows(), ExpandRows()
        self.fold = FoldRows(self.nodes * self.copies)

    def forward(
        self,
        x: Tensor,
        expert: Tensor,
        gate: Tensor,
        scale: Tensor,
        experts: Callable[[Tensor], Tensor],
        second: Optional[Tuple[Tensor, Tensor]] = None,
    ) -> Tuple[Tensor, DispatchContext]:
        """`x`, `expert`, `gate`, `scale`, `experts` and `second`: see `Dispatcher.forward`. The context also tells
        `copies`.
        """
        if self.copies == 0:
            y, context = super().forward(x, expert, gate, scale, experts, second)
            context["copies"] = self.no_copies
            return y, context
        context = self.copy_slots(self.assign(expert, gate, second), gate)
        weight = self.weights(context, scale, second)  # (N, 1)
        of_tokens = ops.cast(weight.reshape(self.top_k, -1).T, x.dtype)  # (T, k) <- (k, T) <- (N, 1)
        rows = ops.concat((x, of_tokens), 1)  # (T, d + k) <- (T, d), (T, k)
        rows = rows if self.top_k == 1 else ops.tile(rows, (self.top_k, 1))  # (N, d + k) <- (T, d + k)
        buffer = self.permute(  # (M, d + k) <- (N, d + k)
            rows, context["assignment"], context["slot_mask"], context["slot"], context["sent_mask"]
        )
        rows = self.permute(  # (N, d) <- (M, d)
            self.run_experts(buffer, context, experts),
            context["slot"],
            context["sent_mask"],
            context["assignment"],
            context["slot_mask"],
        )
        # What comes back for a copy is weighed already.
        weight = ops.cast(ops.select(context["pilot_mask"] > 0.5, ops.ones_like(weight), weight), rows.dtype)
        return (rows * weight).reshape(self.top_k, self.tokens, -1).sum(0), context  # (T, d) <- (k, T, d) <- (N, d)

    def run_experts(self, buffer: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """<float>[M, d] <- `buffer` <float>[M, d + k], of which copies bring their weights in the last k columns; sums
        of a copy's weighed results in its place. `context` and `experts`: see `Dispatcher.run_experts`.
        """
        if self.copies == 0:
            return self._intra_node(buffer, 0, experts)
        width = buffer.shape[-1] - self.top_k
        context["weight_of_slot"] = self._arrived(context["copy_map"])
        near = buffer[: self.intra_rows, :width] if self.intra else None
        copies = buffer[self.intra_rows :].reshape(self.nodes, self.copies, -1)  # (V, C, d + k) <- (V * C, d + k)
        return self._both_tiers(near, copies, context, experts)

    def _arrived(self, own: Tensor) -> Tensor:
        """<int32>[Y], for each slot of this node 1 plus the place of its weight among all that came along the rail (V *
        C * k, copy by copy), or 0 where it is empty; `own` <int32>[V, X]: of the copies sent, by node.
        """
        maps = ops.stop_gradient(self.map_a2a(own))  # (V, X): from each node
        maps = ops.gather(maps, self.others, 0)  # (V - 1, X) <- (V, X)
        return ops.select(maps > 0, maps + self.first_weight, maps).reshape(-1)  # (Y,) <- (V - 1, X)

    def _inter_node(self, handle: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """From the start of the copies' way out to the start of their sums' way home."""
        copies = self.wait_inter_dispatch(handle)  # (V, C, d + k)
        width = copies.shape[-1] - self.top_k
        copies = copies.reshape(-1, width + self.top_k)  # (V * C, d + k) <- (V, C, d + k)
        rows, weights = copies[:, :width], copies[:, width:].reshape(-1, 1)  # (V * C, d); (V * C * k, 1) <- (V * C, k)
        place = context["weight_of_slot"]
        filled = ops.cast(place > 0, dtype.float32).reshape(-1, 1)  # (Y, 1) <- (Y,)
        place = ops.maximum(place - 1, 0)
        copy = ops.floor_div(place, self.top_k)  # (Y,)
        rows = self.expand(rows, copy, filled)  # (Y, d)
        # (V - 1, R, L, C_out, d) <- (Y, d)
        slots = rows.reshape(self.nodes - 1, self.neighbours, self.local_experts, self.inter, width)
        rows = self._through_node(slots, experts).reshape(-1, width)  # (Y, d) <- (V - 1, R, L, C_out, d)
        rows = rows * ops.cast(self.weights_of_slots(weights, place, filled), rows.dtype)
        sums = self.fold(rows, copy).reshape(self.nodes, self.copies, width)  # (V, C, d) <- (V * C, d) <- (Y, d)
        return self.start_inter_combine(sums)


class SharedCopies(Slots):
    """Which assignments share a copy, and which copies find a slot: step 2 at the head of this file. To `Slots` nodes
    are what experts are elsewhere, and pilots are the assignments.

    Args:
        tokens, top_k, by_weight: as `Slots`. nodes: V. copies: C.
    """

    def __init__(self, tokens: int, top_k: int, nodes: int, copies: int, by_weight: bool) -> None:
        super().__init__(tokens, top_k, uniform_slots(np.arange(nodes), copies), by_weight)
        self.top_k, self.nodes, self.copies = top_k, nodes, copies
        self.no_node = Tensor(np.full(self.count, nodes, np.int32))

    def share(self, node: Tensor, weight: Tensor) -> Tuple[DispatchContext, Tensor]:
        """The slots of copies, by their pilots; and <float32>[k, k, T], 1 where of a token's two choices the second is
        the pilot of a copy that the first goes by.

        Args:
            node: <int32>[N], to which each assignment leaves; V: to none. weight: <float32>[T, k], what priority goes
                by.
        """
        order = self.order(weight)
        together = self._together(node)
        pilot = ops.logical_and(node < self.nodes, self._first(together, order))
        wanted = ops.select(pilot, node, self.no_node)
        copies = self.place(wanted, self.rank(wanted, order))
        return copies, together * copies["keep_mask"].reshape(1, self.top_k, -1)  # (k, k, T) <- (N, 1)

    def carried(self, node: Tensor, mine: Tensor) -> Tensor:
        """bool[N], assignments that have a copy to their node; `node` and what it gives, `mine`: see `share`."""
        return ops.logical_and(node < self.nodes, mine.sum(1).reshape(-1) > 0.5)  # (N,) <- (k, T) <- (k, k, T)

    def _together(self, node: Tensor) -> Tensor:
        """<float32>[k, k, T], 1 where two choices of a token want the same node; `node` <int32>[N], V: none."""
        of_tokens = node.reshape(self.top_k, -1)  # (k, T) <- (N,)
        return ops.cast(of_tokens.expand_dims(1) == of_tokens.expand_dims(0), dtype.float32)

    def _first(self, together: Tensor, order: Tensor) -> Tensor:
        """bool[N]: assignments that come before those of their token that they are `together` with, in `order`."""
        if self.by_weight:
            order = ops.scatter_nd(order.reshape(-1, 1), self.index, (self.count,))  # (N,) <- (N, 1), (N,)
        place = order.reshape(self.top_k, -1)  # (k, T) <- (N,)
        earlier = ops.cast(place.expand_dims(0) < place.expand_dims(1), dtype.float32)  # (k, k, T): second before first
        return (together * earlier).sum(1).reshape(-1) < 0.5  # (N,) <- (k, T) <- (k, k, T)


class CopySlots(SharedCopies):
    """Where copies and their assignments lie in the buffers.

    Args:
        setup: tokens, choices, nodes and options. slots: those of `node_dedup_slots`.

    Inputs: context, of the slots of experts; weight <float32>[T, k], what their priority goes by. Output: a
    `DispatchContext` of what travels by itself, own-node assignments and pilots: slot, assignment and slot_mask are
    places in the send buffer. keep_mask has all assignments that come to an expert.
    """

    def __init__(self, setup: DispatchSetup, slots: LayerSlots) -> None:
        by_weight = setup.options.drop_priority == "weight"
        super().__init__(setup.tokens, setup.top_k, setup.nodes, slots.copies, by_weight)
        self.near_rows = setup.experts_per_node * slots.intra_node  # M_in
        self.node_slots = setup.experts_per_node * slots.capacity  # X
        self.nothing = Tensor(np.zeros(self.count, np.int32))
        # 1 + the number of the choice: what a map says of a copy's first weight, second weight ...
        self.weight_place = Tensor(np.repeat(np.arange(1, setup.top_k + 1, dtype=np.int32), setup.tokens))

    def construct(self, context: DispatchContext, weight: Tensor) -> DispatchContext:
        found, far = context["keep_mask"].reshape(-1) > 0.5, context["slot"] >= self.near_rows  # (N,) <- (N, 1)
        leaves, stays = ops.logical_and(found, far), ops.logical_and(found, ops.logical_not(far))
        node = ops.floor_div(context["slot"] - self.near_rows, self.node_slots)
        node = ops.select(leaves, node, self.no_node)
        copies, mine = self.share(node, weight)
        carried = self.carried(node, mine)
        # Where everyone's pilot is among the copies to its node.
        slot = ops.cast(copies["slot"], dtype.float32).reshape(1, self.top_k, -1)  # (1, k, T) <- (N,); exact < 2**24
        copy = ops.cast((mine * slot).sum(1).reshape(-1), dtype.int32) - node * self.copies  # (N,) <- (k, T)
        entry = ops.select(carried, copy * self.top_k + self.weight_place, self.nothing)
        context["copy_map"] = self._map(context, entry)
        assignment, slot_mask = copies["assignment"], copies["slot_mask"]
        if self.near_rows:
            assignment = ops.concat((context["assignment"][: self.near_rows], assignment))  # (M,) <- (M_in,), (V * C,)
            slot_mask = ops.concat((context["slot_mask"][: self.near_rows], slot_mask))  # (M, 1)
        context["slot"] = ops.select(stays, context["slot"], copies["slot"] + self.near_rows)
        context["assignment"], context["slot_mask"] = assignment, slot_mask
        context["keep_mask"] = self._mask(ops.logical_or(stays, carried))
        context["pilot_mask"], context["sent_mask"] = copies["keep_mask"], self._mask(stays) + copies["keep_mask"]
        context["copies"] = copies["keep_mask"].sum()
        return context

    def _map(self, context: DispatchContext, entry: Tensor) -> Tensor:
        """<int32>[V, X]: for each slot of another node's experts the `entry` <int32>[N] of what fills it, or 0."""
        fills = context["assignment"][self.near_rows :]  # (V * X,)
        filled = context["slot_mask"][self.near_rows :].reshape(-1) > 0.5  # (V * X,) <- (V * X, 1)
        entries = ops.gather(entry, fills, 0)
        return ops.select(filled, entries, ops.zeros_like(entries)).reshape(self.nodes, -1)  # (V, X) <- (V * X,)

    def _mask(self, marked: Tensor) -> Tensor:
        return ops.cast(marked, dtype.float32).reshape(-1, 1)  # (N, 1) <- (N,)


class ExpandRows(nn.Cell):
    """Copies rows to new places, some to several; the gradient of a row is the sum over its places.

    Inputs: rows <float>[n, d]; source <int32>[Y], a row for each place; mask <float32>[Y, 1], 0 of a place that stays
    empty. Output: <float>[Y, d].
    """

    def __init__(self) -> None:
        super().__init__()
        self.gather, self.sum = ops.Gather(), ops.UnsortedSegmentSum()

    def construct(self, rows: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        return self.gather(rows, source, 0) * ops.cast(mask, rows.dtype)  # (Y, d) <- (n, d)

    def bprop(self, rows: Tensor, source: Tensor, mask: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, ...]:
        """The gradient of `rows` from that of `out`, `dout`; zeros for `source` and `mask`."""
        grad = self.sum(dout * ops.cast(mask, dout.dtype), source, rows.shape[0])  # (n, d) <- (Y, d)
        return grad, ops.zeros_like(source), ops.zeros_like(mask)


class FoldRows(nn.Cell):
    """Sums rows that have the same target; what is not to count comes as 0. The adjoint of `ExpandRows`.

    Args:
        count: n, sums.

    Inputs: rows <float>[Y, d]; target <int32>[Y], a sum for each row. Output: <float>[n, d].
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.gather, self.sum = ops.Gather(), ops.UnsortedSegmentSum()

    def construct(self, rows: Tensor, target: Tensor) -> Tensor:
        return self.sum(rows, target, self.count)  # (n, d) <- (Y, d)

    def bprop(self, rows: Tensor, target: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        """The gradient of `rows` from that of `out`, `dout`; zeros for `target`."""
        return self.gather(dout, target, 0), ops.zeros_like(target)  # (Y, d) <- (n, d)


def build(collectives: Collectives, setup: DispatchSetup, tag: str) -> NodeDedupDispatcher:
    """See `NodeDedupDispatcher`, whose arguments `collectives`, `setup` and `tag` are."""
    return NodeDedupDispatcher(collectives, setup, tag)
