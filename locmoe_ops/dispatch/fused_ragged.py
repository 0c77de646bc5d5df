"""Ragged dispatch whose sorting of tokens, and putting them together again, are Ascend's fused kernels."""

from typing import Any, Callable, Dict, Optional, Tuple

from mindspore import Tensor, ops

from locmoe_ops.dispatch.ragged import RaggedDispatcher
from locmoe_ops.fused import TokenSort, TokenUnsort


class FusedRaggedDispatcher(RaggedDispatcher):
    """`RaggedDispatcher` in which one kernel copies and sorts the assignments, and one scales and sums their results.

    Of one expert's tokens the earlier come first whatever choice it was, where the plain form takes all first choices first. Nothing is
    dropped, so the order is of no consequence.

    Args, inputs and outputs: as `RaggedDispatcher`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sort = TokenSort()
        self.unsort = TokenUnsort()

    def move(self, x: Tensor, expert: Tensor, gate: Tensor, scale: Tensor, experts: Callable[[Tensor], Tensor],
             second: Optional[Tuple[Tensor, Tensor]] = None) -> Tuple[Tensor, Dict[str, Tensor]]:
        context = self.slots(expert, gate)
        rows, order = self.sort(x, ops.gather(self.slots.position, expert, 0))
        rows = self.carry(rows, context, experts)
        return self.unsort(rows, order, ops.cast(scale, rows.dtype)), context
