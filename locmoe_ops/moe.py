"""The sparse feed-forward layer: the routing cell decides, the dispatcher moves, the experts compute."""

from typing import Dict, Optional, Tuple

import numpy as np

from mindspore import Tensor, nn, ops

from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.errors import InputError
from locmoe_ops.experts import ExpertBank
from locmoe_ops.routers.base import one_hot
from locmoe_ops.routing_cell import MultiLevelRouting


class MoEFeedForward(nn.Cell):
    """A drop-in for a dense FFN on tokens [T, d].

    1. routing: experts and weights of each token, and the losses.
    2. dispatcher: tokens to expert buffers, on whichever rank; experts; back to tokens, scaled by their weights. A dropped token
       gets 0 and lives on in the residual. Where the dispatcher re-picks overflow, the token's second expert has its own weight.

    Args:
        routing, dispatcher, experts: the parts. scale_by_gate: False gives each of a token's k experts the weight 1/k, so that experts
            that are copies of one network give what that network gives.
        local: bool[layout ranks, E], experts on the same node as a rank (`local_experts_table`), for the statistics.
        evaluation_dispatcher: used outside training, where more slots are wanted; default: the same.

    Inputs: x <float>[T, d]; tokens, a dict of ids, domain, home, seed <int32>[T] each.
    Outputs: y <float>[T, d] in x's dtype, and a dict of aux_loss, locality_loss (weighted, equal on all ranks) and this rank's sums:
    assigned <float32>[E] (as chosen, before drops), kept and kept_local <float32> scalars (as finally taken), and undecided <float32>, the
    assignments of tokens that the router's rule left undecided, where the router counts them; and what was routed: seen <float>[T, d] (see
    `Router.seen`) and expert <int32>[T, k], as chosen. What a graph does not use of them costs it nothing.
    """

    def __init__(self, routing: MultiLevelRouting, dispatcher: Dispatcher, experts: ExpertBank, local: np.ndarray,
                 scale_by_gate: bool = True, evaluation_dispatcher: Optional[Dispatcher] = None) -> None:
        super().__init__()
        self.routing = routing
        self.dispatcher = dispatcher
        self.evaluation_dispatcher = evaluation_dispatcher or dispatcher
        self.experts = experts
        self.repicks = dispatcher.repicks
        if not self.repicks == self.evaluation_dispatcher.repicks == routing.router.offers_second:
            raise InputError(f"overflow: the dispatchers re-pick: {self.repicks}, {self.evaluation_dispatcher.repicks}; the router offers "
                             f"second experts: {routing.router.offers_second}; expected all alike")
        self.scale_by_gate = scale_by_gate
        self.top_k = routing.router.top_k
        self.num_experts = routing.router.num_experts
        self.local = Tensor(np.asarray(local, np.float32))

    def construct(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Dict[str, Tensor]]:
        routing = self.routing(x, tokens)
        weight = routing["weight"]
        scale = weight if self.scale_by_gate else self._even(weight)
        chosen, gate = routing["expert"], ops.stop_gradient(weight)
        second = self._second(routing) if self.repicks else None
        if self.training:
            y, context = self.dispatcher.move(x, chosen, gate, scale, self.experts, second)
        else:
            y, context = self.evaluation_dispatcher.move(x, chosen, gate, scale, self.experts, second)
        return ops.cast(y, x.dtype), self._report(routing, context, tokens["home"])

    def _second(self, routing: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        weight = routing["second_weight"]
        return routing["second_expert"], weight if self.scale_by_gate else self._even(weight)

    def _even(self, weight: Tensor) -> Tensor:
        return ops.full_like(weight, 1.0 / self.top_k)

    def _report(self, routing: Dict[str, Tensor], context: Dict[str, Tensor], home: Tensor) -> Dict[str, Tensor]:
        kept = context["kept"]
        chosen = one_hot(routing["expert"].T.reshape(-1), self.num_experts)  # (N, E), choice-major as `kept`
        finally_taken = one_hot(context["expert"], self.num_experts) if self.repicks else chosen
        nearby = ops.gather(self.local, home, 0)  # (T, E)
        nearby = nearby if self.top_k == 1 else ops.tile(nearby, (self.top_k, 1))
        report = {"aux_loss": routing["aux_loss"], "locality_loss": routing["locality_loss"], "assigned": chosen.sum(0),
                  "kept": kept.sum(), "kept_local": ((finally_taken * nearby).sum(1, keepdims=True) * kept).sum(),
                  "seen": routing["seen"], "expert": routing["expert"]}
        if "undecided" in routing:
            report["undecided"] = routing["undecided"].sum() * self.top_k
        return report
