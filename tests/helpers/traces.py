"""A routing trace, made up."""

import numpy as np

from locmoe_ops.routing_trace import RoutingTrace


def made_up_trace(rows: int = 4, length: int = 6, layers: int = 2, top_k: int = 2, groups: int = 1) -> RoutingTrace:
    """Of eight experts on two nodes and two domains; rows differ, and a token's experts are of its domain's group."""
    rng, experts = np.random.default_rng(3), 8
    size = experts // groups
    domain = (np.arange(rows) % 2).astype(np.int32)
    drawn = np.argsort(rng.random((layers, rows, length, size)), -1)[..., :top_k]
    first = domain * size if groups > 1 else np.zeros(rows, np.int32)
    return RoutingTrace(
        token=rng.permutation(rows * length).reshape(rows, length).astype(np.int32),
        domain=domain,
        home=(np.arange(rows) % 4).astype(np.int32),
        expert=(drawn + first[:, None, None]).astype(np.int32),
        weight=rng.random((layers, rows, length, top_k)).astype(np.float32),
        node=np.repeat([0, 1], experts // 2).astype(np.int32),
        num_groups=groups,
        domains=("en", "zh"),
        source={"step": "7", "router": "switch", "rows": "validation"},
    )
