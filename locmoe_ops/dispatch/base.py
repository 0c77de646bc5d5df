"""What all dispatchers share: slots on the way out, weights on the way back.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments (choice-major), M slots of the send
buffer, m those of this rank's share of it, E experts, L of them on this rank, d hidden size.
"""

from typing import Callable, Optional, Tuple

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.geometry import DispatchSetup, LayerSlots
from locmoe_ops.dispatch.group_wise import GatherFromTpRegion, ScatterToTpRegion
from locmoe_ops.dispatch.repick import RepickingAssignment
from locmoe_ops.dispatch.slots import DispatchContext, PermuteRows
from locmoe_ops.functions import choice_major


class Dispatcher(nn.Cell):
    """Moves tokens to their experts and the experts' results back. It owns no parameters; its shapes are fixed at
    compile time.

    1. `dispatch`: give assignments their slots; copy tokens into the send buffer.
    2. `run_experts` (subclasses): the buffer to wherever its experts are, experts, and back to the same slots.
    3. `combine`: copy results to assignments, scale and sum them; a dropped assignment contributes 0.

    Attributes:
        expert_rows: rows that each of this rank's experts is given for one micro-batch, in one call or several;
            group-wise, of a share.
        limits_rows: whether more rows may come than there is room for, which the context then tells (`beyond_limit`).
        counts_copies: whether the context tells how many copies of tokens are sent to other nodes (`copies`).

    Args:
        collectives: of this rank.
        setup: what fixes the shapes.
        layer_slots: what the dispatcher's geometry makes of it. With several shares, `run_experts` is given this rank's
            share, every P-th slot of each stretch of slots, all of which are multiples of P.
        assignment: gives the slots of the send buffer, as `SlotAssignment` or `RepickingAssignment`.
        tag: names the collectives in errors and counters.
    """

    def __init__(
        self, collectives: Collectives, setup: DispatchSetup, layer_slots: LayerSlots, assignment: nn.Cell, tag: str
    ) -> None:
        super().__init__()
        self.tokens = setup.tokens
        self.top_k = setup.top_k
        self.expert_rows = sum(layer_slots.expert_calls)
        self.slots = assignment
        self.repicks = isinstance(assignment, RepickingAssignment)
        self.limits_rows = False
        self.counts_copies = False
        self.permute = PermuteRows()
        shared = layer_slots.shares > 1
        self.own_share = ScatterToTpRegion(collectives, f"{tag}/share") if shared else nn.Identity()
        self.whole = GatherFromTpRegion(collectives, f"{tag}/whole") if shared else nn.Identity()

    def forward(
        self,
        x: Tensor,
        expert: Tensor,
        gate: Tensor,
        scale: Tensor,
        experts: Callable[[Tensor], Tensor],
        second: Optional[Tuple[Tensor, Tensor]] = None,
    ) -> Tuple[Tensor, DispatchContext]:
        """All three steps.

        Args:
            x: <float>[T, d], tokens.
            expert: <int32>[T, k], the experts that each is sent to; E: no assignment.
            gate: <float32>[T, k], the weights that priority goes by. scale: <float32>[T, k], those of the sum.
            experts: maps <float>[L, slots, d] to the same shape.
            second: where overflow is re-picked, each token's second expert <int32>[T] (E: none) and its scale
                <float32>[T].

        Returns: <float>[T, d], and the context of `dispatch`.
        """
        buffer, context = self.dispatch(x, expert, gate, second)
        buffer = self.run_experts(buffer, context, experts)
        return self.combine(buffer, context, scale, second), context

    def dispatch(
        self, x: Tensor, expert: Tensor, gate: Tensor, second: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Tuple[Tensor, DispatchContext]:
        """x, expert, gate, second: as in `forward`. Returns this rank's share of the send buffer <float>[m, d], and
        what `run_experts` and `combine` need to know of it.
        """
        context = self.assign(expert, gate, second)
        rows = x if self.top_k == 1 else ops.tile(x, (self.top_k, 1))  # (N, d) <- (T, d)
        buffer = self.permute(  # (M, d) <- (N, d)
            rows, context["assignment"], context["slot_mask"], context["slot"], context["keep_mask"]
        )
        return self.own_share(buffer), context

    def assign(self, expert: Tensor, gate: Tensor, second: Optional[Tuple[Tensor, Tensor]] = None) -> DispatchContext:
        """Which slot of its expert each assignment gets; `expert`, `gate` and `second`: as in `forward`."""
        return self.slots(expert, gate) if second is None else self.slots(expert, gate, second[0])

    def weights(
        self, context: DispatchContext, scale: Tensor, second: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Tensor:
        """<float32>[N, 1]: what each assignment's result is multiplied by, re-picked ones by that of their expert.

        Args:
            context: of `assign`. scale, second: as in `forward`.
        """
        scale = choice_major(scale).reshape(-1, 1)  # (N, 1) <- (N,) <- (T, k)
        if second is None:
            return scale
        other = second[1].reshape(-1, 1)  # (T, 1) <- (T,)
        other = other if self.top_k == 1 else ops.tile(other, (self.top_k, 1))  # (N, 1) <- (T, 1)
        return ops.select(context["repicked"] > 0.5, other, scale)

    def run_experts(self, buffer: Tensor, context: DispatchContext, experts: Callable[[Tensor], Tensor]) -> Tensor:
        """<float>[m, d] -> <float>[m, d]: row i is what its expert makes of row i.

        Args:
            buffer: rows of this rank's share of the send buffer. context: of `dispatch`. experts: as in `forward`.
        """
        raise NotImplementedError

    def combine(
        self, buffer: Tensor, context: DispatchContext, scale: Tensor, second: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Tensor:
        """<float>[T, d]: the sum of each token's results, scaled.

        Args:
            buffer: <float>[m, d], of `run_experts`. context: of `dispatch`. scale, second: as in `forward`.
        """
        rows = self.permute(  # (N, d) <- (M, d)
            self.whole(buffer), context["slot"], context["keep_mask"], context["assignment"], context["slot_mask"]
        )
        rows = rows * ops.cast(self.weights(context, scale, second), rows.dtype)
        if self.top_k == 1:
            return rows
        return rows.reshape(self.top_k, self.tokens, -1).sum(0)  # (T, d) <- (k, T, d) <- (N, d)
