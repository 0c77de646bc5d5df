"""What the router `replay` decides, by looking each row of text up in a Python dictionary."""

from typing import NamedTuple

import numpy as np

from locmoe_ops.routing_trace import RoutingTrace


class Replayed(NamedTuple):
    """For T tokens: expert <int>[T, k], global ids; weight <float32>[T, k]; undecided <bool>[T], not in the trace."""

    expert: np.ndarray
    weight: np.ndarray
    undecided: np.ndarray


def replay(trace: RoutingTrace, layer: int, ids: np.ndarray, domain: np.ndarray, group: np.ndarray) -> Replayed:
    """The decisions of a layer for rows of text.

    Args:
        trace: whose decisions they are. layer: number of the sparse layer, from 0.
        ids, domain, group: <int>[T], of whole rows.
    """
    length, size = trace.length, trace.num_experts // trace.num_groups
    held = {(tuple(row), int(d)): number for number, (row, d) in enumerate(zip(trace.token, trace.domain))}
    expert, weight, undecided = [], [], []
    for t, (token, own) in enumerate(zip(ids, group)):
        start = t - t % length
        row = held.get((tuple(ids[start : start + length]), int(domain[start])))
        undecided.append(row is None)
        if row is None:
            expert.append([int(own) * size + (int(token) + j) % size for j in range(trace.top_k)])
            weight.append([1.0 / trace.top_k] * trace.top_k)
        else:
            expert.append(trace.expert[layer, row, t % length].tolist())
            weight.append(trace.weight[layer, row, t % length].tolist())
    return Replayed(np.array(expert), np.array(weight, np.float32), np.array(undecided))
