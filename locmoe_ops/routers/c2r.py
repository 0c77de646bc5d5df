"""Collaboration-constrained routing, C2R (Zhang et al., arXiv 2504.01337).

Shape legend: T tokens of this rank, k choices, E experts, G groups, n = E / G.
"""

from typing import Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, one_hot
from locmoe_ops.routers.co_activation import co_activation, partner_table
from locmoe_ops.routers.specs.c2r import C2ROptions
from locmoe_ops.routers.specs.switch import SwitchOptions
from locmoe_ops.routers.switch import SwitchRouter


class C2RRouter(SwitchRouter):
    """A learned gate, whose further experts are among those that go with a token's first.

    1. The first expert i: the largest probability, or what a selection bias makes of it.
    2. The k - 1 others: the largest probabilities among Top-T(i), the T experts that were chosen together with i most
       often, C_ij = number of tokens of which both i and j were chosen.
    3. Weights are the probabilities of what is chosen, over the whole group. Load-balancing loss of what is chosen, as
       switch's.

    The paper profiles C on a trained model and then fine-tunes it with the constraint, and places experts that go
    together on one device. Here C is counted in a routing trace (`co_activation`), of each layer by itself. Experts
    stay where they are, and Top-T(i) is taken among those on the device of i, so that one copy of a token does. Without
    a table all experts of that device may follow.

    Args:
        context: of the router; its layer is that of the table. options: its keys.
        pairs: <int>[E, E], C of this layer; None: there is none, and `partners` is None or a checkpoint brings the
            table.
    """

    def __init__(self, context: RouterContext, options: C2ROptions, pairs: Optional[np.ndarray] = None) -> None:
        super().__init__(context, SwitchOptions(options.aux_loss_weight))
        shape = context.shape
        table = partner_table(shape.num_experts, shape.num_groups, options.num_devices or 1, options.partners, pairs)
        # A buffer that checkpoints keep: a network that is filled from one needs no trace.
        self.partners = Parameter(Tensor(table), name="partners", requires_grad=False)

    def select_top_k(self, scores: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `GatedRouter.select_top_k`, with the same `scores`, `probabilities` and `tokens`: those after the first
        are partners of it.
        """
        first = self.argmax(self.biased_scores(scores, tokens))  # (T,)
        allowed = ops.gather(self.partners, tokens["group"] * self.per_group + first, 0)  # (T, n) <- (E, n)
        rest = scores - 4.0 * (1.0 - allowed)  # the others, and the first itself, are below every score
        choices = [first.reshape(-1, 1)]  # (T, 1) <- (T,)
        for _ in range(self.top_k - 1):
            choice = self.argmax(self.biased_scores(rest, tokens))
            choices.append(choice.reshape(-1, 1))  # (T, 1) <- (T,)
            rest = rest - one_hot(choice, self.per_group) * 4.0
        chosen = ops.concat(choices, 1)  # (T, k) <- k * (T, 1)
        return chosen, ops.gather_elements(probabilities, 1, chosen)


def pairs_of_trace(path: str, context: RouterContext) -> np.ndarray:
    """<int64>[E, E], `co_activation` of one layer in the routing trace at `path`.

    Args:
        path: of the file. context: of the router, whose layer and experts are meant.

    Raises:
        InputError: the file is no trace, is of other experts or fewer layers, or has one expert a token.
    """
    from locmoe_ops.routing_trace import read_trace

    key, shape = "moe.router.c2r.table", context.shape
    trace = read_trace(path, key)
    found, wanted = (trace.num_experts, trace.num_groups), (shape.num_experts, shape.num_groups)
    if found != wanted or context.layer >= trace.layers or trace.top_k < 2:
        raise InputError(
            f"{key} {path}: is of moe.num_experts {trace.num_experts}, moe.num_groups {trace.num_groups}, "
            f"{trace.layers} sparse layers and moe.router.top_k {trace.top_k}; expected {shape.num_experts}, "
            f"{shape.num_groups}, at least {context.layer + 1}, and 2 or more, since experts go together where a token "
            "has several"
        )
    choices = trace.expert[context.layer].reshape(-1, trace.top_k)  # (N, k) <- (R, S, k)
    return co_activation(choices, shape.num_experts)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    options = context.options
    counts = options.table is not None and context.reads_files
    return C2RRouter(context, options, pairs_of_trace(options.table, context) if counts else None)
