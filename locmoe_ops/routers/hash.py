"""Random routed experts (RRE) of PanGu-Sigma: a fixed random map from token id to expert; nothing is learned."""

from dataclasses import dataclass
from typing import Dict, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, ops

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSpec
from locmoe_ops.routers.base import Router, RoutingShape
from locmoe_ops.routers.context import RouterContext


@dataclass(frozen=True)
class HashOptions:
    balance: str = key(
        "uniform",
        "deal the vocabulary out evenly by count of ids, or by their frequency in the group's training text",
        choices=("uniform", "frequency"),
    )


ROUTER = RouterSpec(HashOptions, picks="picks by token id alone", top_k=1)


class HashRouter(Router):
    """Level 2 of RRE (arXiv 2303.10845): the map of the token's group gives its expert; outputs are not scaled.

    Args:
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

    def choose(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        index = tokens["group"] * self.vocab_size + tokens["ids"]
        choice = ops.gather(self.table.reshape(-1), index, 0).reshape(-1, 1)
        return choice, ops.ones(choice.shape, dtype.float32), Tensor(0.0, dtype.float32)


def build(request: RouterContext) -> Router:
    return HashRouter(request.shape, request.hash_tables(request.own.balance))
