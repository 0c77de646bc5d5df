"""Sums over a group of several nodes that cross between them as little as they can, whole or in stretches.

Shape legend: n numbers of a vector or of a stretch, P ranks of the group, R of them on a node.
"""

from __future__ import annotations

from typing import Protocol

from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.registry import reduce_tiers
from locmoe_ops.topology import Topology


class ReducingCollectives(Protocol):
    """What the sum needs of `locmoe_ops.collectives.interface.Collectives`, which says what the Cells do."""

    rank: int
    topology: Topology

    def all_reduce(self, group: str, tag: str) -> nn.Cell:
        """Any shape, summed over the group."""

    def reduce_scatter(self, group: str, tag: str) -> nn.Cell:
        """(P * n,) -> (n,)."""

    def all_gather(self, group: str, tag: str) -> nn.Cell:
        """(n,) -> (P * n,)."""


class HierarchicalAllReduce(nn.Cell):
    """Sums a vector over a group so that each number crosses between nodes once, and not once for every rank of a node.

    1. Reduce-scatter among the group's R ranks of a node. 2. All-reduce of a rank's part along its rail, over nodes.
    3. All-gather inside the node. Where the group has one rank a node or lies on one node, a plain all-reduce.

    Args:
        collectives: of this rank.
        group: kind of the group, as in `locmoe_ops.topology.GROUP_KINDS`.
        tag: names the call site; the steps' tags begin with it.

    Input and output: <float32>[n], any n.
    """

    def __init__(self, collectives: ReducingCollectives, group: str, tag: str) -> None:
        super().__init__(auto_prefix=False)
        tiers = reduce_tiers(collectives.topology, group, collectives.rank)
        self.neighbours = len(collectives.topology.group_of(tiers[0], collectives.rank))
        self.in_steps = len(tiers) > 1
        if self.in_steps:
            node, rail = tiers
            self.scatter = collectives.reduce_scatter(node, f"{tag}/scatter")
            self.reduce = collectives.all_reduce(rail, f"{tag}/rail")
            self.gather = collectives.all_gather(node, f"{tag}/gather")
        else:
            self.reduce = collectives.all_reduce(group, tag)
        self.concat = ops.Concat()

    def construct(self, vector: Tensor) -> Tensor:
        if not self.in_steps:
            return self.reduce(vector)
        size = vector.shape[0]
        rest = -size % self.neighbours
        if rest:
            vector = self.concat((vector, ops.zeros((rest,), vector.dtype)))  # (n + rest,), a multiple of R
        vector = self.gather(self.reduce(self.scatter(vector)))
        return vector[:size] if rest else vector


class HierarchicalReduceScatter(nn.Cell):
    """(P * n,) -> (n,): this rank's stretch of the sum over a group, tier by tier (see `reduce_tiers`).

    The stretches lie by place in the node, then by node.

    Args:
        collectives: of this rank.
        group: kind of the group.
        tag: what the steps' tags begin with.
    """

    def __init__(self, collectives: ReducingCollectives, group: str, tag: str) -> None:
        super().__init__(auto_prefix=False)
        tiers = reduce_tiers(collectives.topology, group, collectives.rank)
        self.steps = nn.CellList([collectives.reduce_scatter(kind, f"{tag}/{kind}") for kind in tiers])

    def construct(self, vector: Tensor) -> Tensor:
        for step in self.steps:
            vector = step(vector)
        return vector


class HierarchicalAllGather(nn.Cell):
    """(n,) -> (P * n,): puts stretches together in the order in which `HierarchicalReduceScatter` cuts them.

    Args:
        collectives: of this rank.
        group: kind of the group.
        tag: what the steps' tags begin with.
    """

    def __init__(self, collectives: ReducingCollectives, group: str, tag: str) -> None:
        super().__init__(auto_prefix=False)
        tiers = reduce_tiers(collectives.topology, group, collectives.rank)
        self.steps = nn.CellList([collectives.all_gather(kind, f"{tag}/{kind}") for kind in tiers[::-1]])

    def construct(self, vector: Tensor) -> Tensor:
        for step in self.steps:
            vector = step(vector)
        return vector


class StartAllReduce(nn.Cell):
    """Start of an `AsyncAllReduce` whose handle is the sum itself, a tensor of the graph.

    On Ascend the exchange begins when its input is there and overlaps the computation until the sum is used. A tie from
    it to the control would make what follows wait for the sum.

    Args:
        all_reduce: sums a vector <float32>[n].
    """

    def __init__(self, all_reduce: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = all_reduce

    def construct(self, tensor: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        return ops.reshape(self.all_reduce(ops.reshape(tensor, (-1,))), tensor.shape), control


class WaitAllReduce(nn.Cell):
    """Wait of an `AsyncAllReduce` whose handles are the sums themselves."""

    def construct(self, handles: tuple[Tensor, ...], after: Tensor) -> tuple[Tensor, ...]:
        return handles
