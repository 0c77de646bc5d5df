"""Routing by token id: a fixed map says which experts; nothing about the choice is learned.

Random routed experts (RRE) of PanGu-Sigma and Hash Layers have one expert an id. DeepSeek-V4 routes its first three
layers with experts so, with several experts an id and weights by a learned gate.

Shape legend: T tokens of this rank, d hidden size, G groups, n experts of a group, k choices, V vocabulary size.
"""

from typing import Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, RoutingShape, one_hot
from locmoe_ops.routers.gates import DenseGate, GateScores
from locmoe_ops.routers.specs.hash import HashOptions

DEFAULTS = HashOptions()


class HashRouter(Router):
    """Level 2 of RRE (arXiv 2303.10845): the map of the token's group gives its experts i_1 ... i_k.

    1. The experts of the token's id, from the map.
    2. `weights` equal: 1 / k each, so that with k = 1 outputs are not scaled (RRE).
    3. `weights` gate: s = score(W x) over the n experts of the group, in float32, of which the chosen ones are taken:
       w_j = scale * s_{i_j} / sum_l s_{i_l}, or without `renormalise` scale * s_{i_j}. So DeepSeek-V4 weights the
       layers that it routes by hash, with score sqrt(softplus(v)) (after its published inference code; one group). The
       scores take no part in the choice, and no bias or loss is there to balance what the map has balanced.

    Args:
        shape: sizes.
        table: <int32>[G, V] with k = 1, else [G, V, k]: experts within the group of each token id, an id's all
            different (see `locmoe_ops.routers.hash_maps`). It is kept as a buffer that checkpoints hold and no
            optimizer touches. Callers check ids against V: see `check_token_ids`.
        options: of the weights.

    Raises InputError where the table does not fit the sizes.
    """

    def __init__(self, shape: RoutingShape, table: np.ndarray, options: HashOptions = DEFAULTS) -> None:
        super().__init__(shape)
        check_table(shape, table)
        self.vocab_size = table.shape[1]
        self.table = Parameter(Tensor(np.asarray(table, np.int32)), name="table", requires_grad=False)
        self.by_gate = options.weights == "gate"
        self.gate = DenseGate(shape) if self.by_gate else nn.Identity()
        self.gate_scores = GateScores(options.score)
        self.renormalise, self.scale = options.renormalise, options.scale

    def expert_by_id(self) -> np.ndarray:
        """See `Router.expert_by_id`."""
        table: np.ndarray = self.table.asnumpy()
        return table

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: by the ids and groups of `tokens`; `x` plays a part in weights alone."""
        index = tokens["group"] * self.vocab_size + tokens["ids"]
        # (T, k) <- (T,) <- table (G*V, k) <- (G, V) or (G, V, k)
        choice = ops.gather(self.table.reshape(-1, self.top_k), index, 0)
        if self.by_gate:
            weight = self.chosen_weights(x, choice, tokens["group"])
        else:
            weight = ops.ones(choice.shape, dtype.float32)
            weight = weight if self.top_k == 1 else weight / self.top_k
        return choice, weight, Tensor(0.0, dtype.float32)

    def chosen_weights(self, x: Tensor, choice: Tensor, group: Tensor) -> Tensor:
        """<float32>[T, k]: what the gate gives the experts that the map has chosen.

        Args:
            x: <float>[T, d]. choice: <int32>[T, k], within the group. group: <int32>[T].
        """
        values = self.gate(ops.cast(x, dtype.float32), one_hot(group, self.num_groups))  # (T, n) <- (T, d)
        chosen = ops.gather_elements(self.gate_scores(values), 1, choice)  # (T, k) <- (T, n)
        if self.renormalise:
            chosen = chosen / chosen.sum(-1, keepdims=True)
        return chosen * self.scale


def check_table(shape: RoutingShape, table: np.ndarray) -> None:
    """Raises InputError where a `table`, <int>[G, V] or [G, V, k], does not fit the `shape`, or gives an id one expert
    twice.
    """
    groups, choices = table.shape[0], table.shape[2] if table.ndim == 3 else 1
    if groups != shape.num_groups or table.min() < 0 or table.max() >= shape.per_group:
        raise InputError(
            f"hash table: {groups} groups with experts {table.min()} to {table.max()}; "
            f"expected {shape.num_groups} groups with experts 0 to {shape.per_group - 1}"
        )
    if choices != shape.top_k:
        raise InputError(f"hash table: {choices} experts a token id; expected top_k, {shape.top_k}")
    if choices > 1:
        ordered = np.sort(table, axis=2)
        twice = np.argwhere((ordered[..., 1:] == ordered[..., :-1]).any(2))
        if len(twice):
            group, token_id = twice[0].tolist()
            raise InputError(
                f"hash table: group {group}, token id {token_id} has the experts {table[group, token_id].tolist()}; "
                "expected different ones"
            )


def build(context: RouterContext) -> Router:
    """The router of `context`.

    A network that is built to be filled from a checkpoint, or to be measured, is given no map of a file; ids are then
    dealt out as `balance` says.
    """
    options: HashOptions = context.options
    table = context.hash_tables(options.balance, context.shape.top_k) if context.id_map is None else context.id_map
    return HashRouter(context.shape, table, options)
