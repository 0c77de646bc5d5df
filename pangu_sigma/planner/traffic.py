"""Bytes that a training step sends, inside nodes and between them: what the tcp backend counts, to the byte.

What one collective sends stands in its record in `locmoe_ops.collectives.registry`. Payload only, summed over all
ranks, as in `pangu_sigma.train.metrics`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Iterable, NamedTuple

import numpy as np

from locmoe_ops.collectives.registry import link_bytes
from locmoe_ops.topology import Topology
from pangu_sigma.planner.exchanges import CAUSES, Exchange


class Sent(NamedTuple):
    """Bytes to ranks of the sender's own node, and to other nodes."""

    intra_node: int
    inter_node: int

    def __add__(self, other: object) -> Sent:
        assert isinstance(other, Sent)
        return Sent(self.intra_node + other.intra_node, self.inter_node + other.inter_node)

    @property
    def total(self) -> int:
        return self.intra_node + self.inter_node


NOTHING = Sent(0, 0)


class _Pairs(NamedTuple):
    """Of all groups of a kind: <int64>[P] each, how many peers of each place in a group are on the same node and how
    many are not, over all groups.
    """

    intra_node: np.ndarray
    inter_node: np.ndarray


@lru_cache(maxsize=512)
def _pairs(topology: Topology, kind: str) -> _Pairs:
    nodes = np.array(topology.groups(kind)) // topology.ranks_per_node  # (groups, P)
    near = np.stack([(nodes == nodes[:, [place]]).sum(1) - 1 for place in range(nodes.shape[1])], 1).sum(0)
    return _Pairs(near, len(nodes) * (nodes.shape[1] - 1) - near)


def sent(exchange: Exchange, topology: Topology) -> Sent:
    """Bytes of one call of `exchange`, summed over all ranks of a job of that `topology`."""
    pairs = _pairs(topology, exchange.group)
    part = link_bytes(exchange.operation, exchange.elements, exchange.item, len(pairs.intra_node))
    return Sent(*(int((count * part).sum()) for count in pairs))


def by_cause(exchanges: Iterable[Exchange], topology: Topology) -> dict[str, Sent]:
    """Bytes of a step's `exchanges` by cause, summed over all ranks of a job of that `topology`."""
    totals = {cause: NOTHING for cause in CAUSES}
    for exchange in exchanges:
        once = sent(exchange, topology)
        totals[exchange.cause] += Sent(once.intra_node * exchange.times, once.inter_node * exchange.times)
    return totals
