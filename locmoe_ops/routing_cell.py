"""The multi-level routing cell: domain -> expert group, then a router inside the group (PanGu-Sigma's two levels)."""

from typing import Dict, Sequence

import numpy as np

from mindspore import Tensor, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router


class MultiLevelRouting(nn.Cell):
    """Level 1: the token's domain picks its expert group. Level 2: `router` picks experts of that group.

    Args:
        domain_groups: group of each domain, length D.
        router: level 2.

    Inputs: x <float>[T, d]; tokens, a dict of ids, domain, home, seed <int32>[T] each. Output: as `Router`.
    """

    def __init__(self, domain_groups: Sequence[int], router: Router) -> None:
        super().__init__()
        wrong = [g for g in domain_groups if not 0 <= g < router.num_groups]
        if wrong or not domain_groups:
            raise InputError(f"domain_groups {list(domain_groups)}: expected group ids 0 to {router.num_groups - 1}, one a domain")
        self.domain_groups = Tensor(np.asarray(domain_groups, np.int32))
        self.router = router

    def construct(self, x: Tensor, tokens: Dict[str, Tensor]) -> Dict[str, Tensor]:
        group = ops.gather(self.domain_groups, tokens["domain"], 0)
        level_2 = {"ids": tokens["ids"], "group": group, "home": tokens["home"], "seed": tokens["seed"]}
        if self.router.by_word:
            level_2["word"] = tokens["word"]
        return self.router(x, level_2)


def check_token_ids(ids: np.ndarray, domain: np.ndarray, vocab_size: int, domains: int) -> None:
    """Raises InputError where a token or domain id lies outside its table: a compiled gather would read wild memory.

    ids, domain: integer arrays of any shape, on the host.
    """
    for name, values, limit in (("token id", ids, vocab_size), ("domain id", domain, domains)):
        if values.size and (values.min() < 0 or values.max() >= limit):
            worst = values.min() if values.min() < 0 else values.max()
            raise InputError(f"{name} {int(worst)} is out of range; expected 0 to {limit - 1}")
