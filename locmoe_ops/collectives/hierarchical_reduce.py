"""Sums over a group of several nodes that cross between them as little as they can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindspore import Tensor, nn, ops

if TYPE_CHECKING:
    from locmoe_ops.collectives.interface import Collectives


class HierarchicalAllReduce(nn.Cell):
    """Sums a vector over a group so that each number crosses between nodes once, and not once for every rank of a node.

    1. Reduce-scatter among the group's R ranks of a node. 2. All-reduce of a rank's part along its rail, over nodes.
    3. All-gather inside the node. Where the group has one rank a node or lies on one node, a plain all-reduce.

    Input and output: <float32>[n], any n.
    """

    def __init__(self, collectives: Collectives, group: str, tag: str) -> None:
        super().__init__(auto_prefix=False)
        topology, rank = collectives.topology, collectives.rank
        self.neighbours = len(topology.group_of(f"{group}_node", rank))
        self.in_steps = self.neighbours > 1 and len(topology.group_of(f"{group}_rail", rank)) > 1
        if self.in_steps:
            self.scatter = collectives.reduce_scatter(f"{group}_node", f"{tag}/scatter")
            self.reduce = collectives.all_reduce(f"{group}_rail", f"{tag}/rail")
            self.gather = collectives.all_gather(f"{group}_node", f"{tag}/gather")
        else:
            self.reduce = collectives.all_reduce(group, tag)
        self.concat = ops.Concat()

    def construct(self, vector: Tensor) -> Tensor:
        if not self.in_steps:
            return self.reduce(vector)
        size = vector.shape[0]
        rest = -size % self.neighbours
        if rest:
            vector = self.concat((vector, ops.zeros((rest,), vector.dtype)))
        vector = self.gather(self.reduce(self.scatter(vector)))
        return vector[:size] if rest else vector


class StartAllReduce(nn.Cell):
    """Start of a `AsyncAllReduce` whose sum is a tensor of the graph. On Ascend the exchange begins when its input is
    there and runs beside the computation until the result is used; a tie from it to the control would make what follows
    wait for that result.
    """

    def __init__(self, total: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.sum = total

    def construct(self, tensor: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        return ops.reshape(self.sum(ops.reshape(tensor, (-1,))), tensor.shape), control


class WaitAllReduce(nn.Cell):
    """Wait of a `AsyncAllReduce` whose stand-ins are the sums themselves."""

    def construct(self, handles: tuple[Tensor, ...], after: Tensor) -> tuple[Tensor, ...]:
        return handles
