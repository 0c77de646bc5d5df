"""Random routed experts (RRE) of PanGu-Sigma: a fixed random map from token id to expert; nothing is learned.

Shape legend: T tokens of this rank, G groups, V vocabulary size.
"""

from typing import Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, RoutingShape


class HashRouter(Router):
    """Level 2 of RRE (arXiv 2303.10845): the map of the token's group gives its expert; outputs are not scaled.

    Args:
        shape: sizes; a top_k other than 1 raises InputError.
        table: <int32>[G, V], expert within the group for each token id (see `locmoe_ops.routers.hash_maps`). It is kept
            as a buffer that checkpoints hold and no optimizer touches. Callers check ids against V: see
            `check_token_ids`.
    """

    def __init__(self, shape: RoutingShape, table: np.ndarray) -> None:
        super().__init__(shape)
        if shape.top_k != 1:
            raise InputError(f"top_k {shape.top_k}: the hash router sends a token to one expert; expected 1")
        groups, self.vocab_size = table.shape
        if groups != shape.num_groups or table.min() < 0 or table.max() >= shape.per_group:
            raise InputError(
                f"hash table: {groups} groups with experts {table.min()} to {table.max()}; "
                f"expected {shape.num_groups} groups with experts 0 to {shape.per_group - 1}"
            )
        self.table = Parameter(Tensor(np.asarray(table, np.int32)), name="table", requires_grad=False)

    def expert_by_id(self) -> np.ndarray:
        """See `Router.expert_by_id`."""
        table: np.ndarray = self.table.asnumpy()
        return table

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: by the ids and groups of `tokens`; `x` plays no part."""
        index = tokens["group"] * self.vocab_size + tokens["ids"]
        choice = ops.gather(self.table.reshape(-1), index, 0).reshape(-1, 1)  # (T, 1) <- (T,) <- table (G*V,)
        return choice, ops.ones(choice.shape, dtype.float32), Tensor(0.0, dtype.float32)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return HashRouter(context.shape, context.hash_tables(context.options.balance))
