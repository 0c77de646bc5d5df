"""Sums over a group of several nodes that cross between them as little as they can, whole or in stretches.

They may travel in a narrower type, `wire`, than they are added in. HCCL's all-reduce and reduce-scatter take one type
a call, and there is no documented way to have them add in another. Hence a sum of narrow numbers is made of an
all-to-all, after which every rank has all terms of its own stretch and adds them in float32, and of an all-gather of
the sums. A number is rounded when it is sent: once a tier on its way to the sum, once as the sum. These are as many
bytes as those of an all-reduce of narrow numbers, and all ranks have the same bits.

Shape legend: n numbers of a vector or of a stretch, P ranks of the group, R of them on a node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional, Protocol

from mindspore import Tensor, dtype, nn, ops

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

    def all_to_all(self, group: str, tag: str) -> nn.Cell:
        """(P, n) -> (P, n)."""


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


class NarrowReduceScatter(nn.Cell):
    """(P * n,) -> <float32>[n]: this rank's stretch of a sum whose terms travel as `wire` and are added in float32.

    Args:
        collectives: of this rank.
        group: kind of the group.
        tag: names the exchange.
        wire: float16 or bfloat16.
    """

    def __init__(self, collectives: ReducingCollectives, group: str, tag: str, wire: dtype.Type) -> None:
        super().__init__(auto_prefix=False)
        self.ranks = len(collectives.topology.group_of(group, collectives.rank))
        self.exchange = collectives.all_to_all(group, tag)
        self.wire = wire
        self.sum = ops.ReduceSum()

    def construct(self, vector: Tensor) -> Tensor:
        terms = self.exchange(ops.cast(vector, self.wire).reshape((self.ranks, -1)))  # (P, n) <- (P * n,)
        return self.sum(ops.cast(terms, dtype.float32), 0)  # (n,) <- (P, n)


class HierarchicalReduceScatter(nn.Cell):
    """(P * n,) -> (n,): this rank's stretch of the sum over a group, tier by tier (see `reduce_tiers`).

    The stretches lie by place in the node, then by node.

    Args:
        collectives: of this rank.
        group: kind of the group.
        tag: what the steps' tags begin with.
        wire: type in which numbers travel, see the head of this file; None: their own.
    """

    def __init__(
        self, collectives: ReducingCollectives, group: str, tag: str, wire: Optional[dtype.Type] = None
    ) -> None:
        super().__init__(auto_prefix=False)
        steps = [(kind, f"{tag}/{kind}") for kind in reduce_tiers(collectives.topology, group, collectives.rank)]
        self.steps = nn.CellList(
            [collectives.reduce_scatter(kind, name) for kind, name in steps]
            if wire is None
            else [NarrowReduceScatter(collectives, kind, name, wire) for kind, name in steps]
        )

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


class NarrowAllReduce(nn.Cell):
    """<float32>[n] -> <float32>[n], any n: the sum over a group, see the head of this file.

    Args:
        collectives: of this rank.
        group: kind of the group.
        tag: what the steps' tags begin with.
        wire: float16 or bfloat16.
    """

    def __init__(self, collectives: ReducingCollectives, group: str, tag: str, wire: dtype.Type) -> None:
        super().__init__(auto_prefix=False)
        self.ranks = len(collectives.topology.group_of(group, collectives.rank))
        self.scatter = HierarchicalReduceScatter(collectives, group, tag, wire)
        self.gather = HierarchicalAllGather(collectives, group, f"{tag}/sums")
        self.wire = wire
        self.concat = ops.Concat()

    def construct(self, vector: Tensor) -> Tensor:
        size = vector.shape[0]
        rest = -size % self.ranks
        if rest:
            vector = self.concat((vector, ops.zeros((rest,), vector.dtype)))  # (n + rest,), a multiple of P
        sums = ops.cast(self.gather(ops.cast(self.scatter(vector), self.wire)), dtype.float32)
        return sums[:size] if rest else sums


def all_reduce_of(collectives: ReducingCollectives, group: str, tag: str, wire: Optional[dtype.Type] = None) -> nn.Cell:
    """Sums a vector <float32>[n] over a group: a `HierarchicalAllReduce`, or a `NarrowAllReduce` where it travels as
    `wire`; `collectives`, `group` and `tag` as there.
    """
    if wire is None:
        return HierarchicalAllReduce(collectives, group, tag)
    return NarrowAllReduce(collectives, group, tag, wire)


class StartAllReduce(nn.Cell):
    """Start of an `AsyncAllReduce` whose handle is the tensor itself: in a graph the sum of a bucket can begin as soon
    as its tensors are there, whatever stands beside it, and nothing has to be started.
    """

    def construct(self, tensor: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        return tensor, control


_flat = ops.MultitypeFuncGraph("flat")
_like = ops.MultitypeFuncGraph("like")


@_flat.register("Tensor")
def _flat_one(tensor: Tensor) -> Tensor:
    return ops.reshape(tensor, (-1,))  # (n,) <- (...)


@_like.register("Tensor", "Tensor")
def _like_one(flat: Tensor, tensor: Tensor) -> Tensor:
    return ops.reshape(flat, tensor.shape)  # (...) <- (n,)


class WaitAllReduce(nn.Cell):
    """Wait of an `AsyncAllReduce` whose handles are the tensors: sums them, all in one vector.

    MindSpore's kernel-by-kernel graphs run what is ready in the order of the graph, exchanges first (KernelGraph,
    EnqueueActiveNodes), and each communicator has a stream of its own (see `purpose_of`): the sum should be under way
    while the layers below are computed. Read in MindSpore's source; not measured.

    Args:
        all_reduce: sums a vector <float32>[n].
        shapes: of the tensors.
    """

    def __init__(self, all_reduce: nn.Cell, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = all_reduce
        self.sizes = tuple(math.prod(shape) for shape in shapes)
        self.concat = ops.Concat()
        self.map = ops.HyperMap()

    def construct(self, handles: tuple[Tensor, ...], after: Tensor) -> tuple[Tensor, ...]:
        if len(self.sizes) == 1:
            return (_like_one(self.all_reduce(_flat_one(handles[0])), handles[0]),)
        sums = self.all_reduce(self.concat(self.map(_flat, handles)))
        return self.map(_like, ops.split(sums, self.sizes), handles)
