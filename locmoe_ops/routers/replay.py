"""The router that takes the decisions of a routing trace again, to the bit.

Shape legend: T tokens of this rank, S tokens of a row, B = T / S rows, R rows of the trace, k choices, n experts of a
group.
"""

from typing import Tuple

import numpy as np

from mindspore import Tensor, dtype, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, RoutingShape
from locmoe_ops.routers.specs.replay import TRACE
from locmoe_ops.routing_trace import RoutingTrace, read_trace


class ReplayRouter(Router):
    """Experts and weights of a trace, for rows of text that it holds, wherever these stand in a batch.

    1. Each row is compared whole, ids and domain, with all rows of the trace.
    2. Its tokens get the experts and the weights of the row that is equal to it. Weights are constants: the router has
       no parameters, no gradient and no losses.
    3. Tokens of a row that the trace does not hold are undecided (`moe/undecided_fraction` counts them). They go to the
       experts (id + j) mod n of their group, j = 0 ... k - 1, with weights 1 / k.

    Args:
        shape: sizes.
        trace: of the same experts and choices a token.
        layer: number of the sparse layer, from 0.

    Raises InputError where two rows of the trace are the same text with different decisions in the layer, as of a
    router whose choices depend on the rest of the batch.
    """

    def __init__(self, shape: RoutingShape, trace: RoutingTrace, layer: int) -> None:
        super().__init__(shape)
        self.needs = ("domain",)
        self.counts_undecided = True
        self.length = trace.length
        kept = _distinct_rows(trace, layer)
        rows = np.concatenate((trace.domain[:, None], trace.token), 1)[kept]
        self.rows = Tensor(rows)  # (R, 1 + S)
        # Global ids and weights of the layer, token by token.
        self.traced_expert = Tensor(trace.expert[layer, kept].reshape(-1, self.top_k))  # (R * S, k) <- (R, S, k)
        self.traced_weight = Tensor(trace.weight[layer, kept].reshape(-1, self.top_k))  # (R * S, k) <- (R, S, k)
        self.place = Tensor(np.arange(self.length, dtype=np.int32))
        self.rank_of_choice = Tensor(np.arange(self.top_k, dtype=np.int32))
        self.best = ops.ArgMaxWithValue(axis=-1)

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: by the ids, domains and groups of `tokens`; `x` plays no part."""
        row, found = self._find(tokens)
        place = (row.expand_dims(1) * self.length + self.place).reshape(-1)  # (T,) <- (B, S) <- (B, 1), (S,)
        first = (tokens["group"] * self.per_group).reshape(-1, 1)  # (T, 1) <- (T,)
        traced = ops.gather(self.traced_expert, place, 0) - first  # (T, k) <- (R * S, k), (T,)
        wanted = tokens["ids"].reshape(-1, 1) + self.rank_of_choice  # (T, k) <- (T, 1), (k,)
        elsewhere = wanted - ops.floor_div(wanted, self.per_group) * self.per_group
        is_found = ops.cast(found, dtype.int32)
        choice = traced * is_found + elsewhere * (1 - is_found)
        weight = ops.gather(self.traced_weight, place, 0) * found + (1.0 - found) / self.top_k  # (T, k) <- (R * S, k)
        return choice, weight, Tensor(0.0, dtype.float32)

    def undecided(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `Router.undecided`, with the same `x` and `tokens`: those that the trace does not hold."""
        _, found = self._find(tokens)
        return 1.0 - found.reshape(-1)  # (T,) <- (T, 1)

    def _find(self, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """-> number of the equal row of the trace <int32>[B], anything where there is none; whether there is one
        <float32>[T, 1].
        """
        if tokens["ids"].shape[0] % self.length != 0:
            raise ValueError("router replay: the tokens of a call are no whole rows of the trace's length")
        ids = tokens["ids"].reshape(-1, self.length)  # (B, S) <- (T,)
        domain = tokens["domain"].reshape(-1, self.length)[:, :1]  # (B, 1) <- (T,)
        given = ops.concat((domain, ids), 1).expand_dims(1)  # (B, 1, 1 + S) <- (B, 1), (B, S)
        # Exact: counts of at most 2**24 numbers in float32.
        equal = ops.cast(ops.equal(given, self.rows), dtype.float32).sum(-1)  # (B, R) <- (B, 1, 1 + S), (R, 1 + S)
        row, most = self.best(equal)
        whole = ops.cast(ops.equal(most, float(self.length + 1)), dtype.float32)
        row = ops.cast(row, dtype.int32)  # which it is, or int64, by mode and device
        return row, ops.tile(whole.expand_dims(1), (1, self.length)).reshape(-1, 1)  # (T, 1) <- (B, S) <- (B, 1)


def _distinct_rows(trace: RoutingTrace, layer: int) -> np.ndarray:
    """Numbers of the rows of different text, <int64>[R]. Raises InputError, see `ReplayRouter`."""
    first: dict = {}
    expert, weight = trace.expert[layer], trace.weight[layer]
    for number, (row, domain) in enumerate(zip(trace.token, trace.domain)):
        before = first.setdefault((row.tobytes(), int(domain)), number)
        if (expert[before] != expert[number]).any() or (weight[before] != weight[number]).any():
            raise InputError(
                f"{TRACE}: rows {before} and {number} are the same text with different decisions in sparse layer "
                f"{layer}, and cannot be told apart; expected a trace of a router that decides token by token"
            )
    return np.array(list(first.values()), np.int64)


def build(context: RouterContext) -> Router:
    """The router of `context`. Raises InputError where the trace cannot be read or replayed."""
    return ReplayRouter(context.shape, read_trace(context.options.trace, TRACE), context.layer)
