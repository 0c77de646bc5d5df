"""Optimizer state shared out over data-parallel ranks: ZeRO-1 (arXiv 1910.02054, P_os).

Parameters that are updated alike are put one after another in buckets; of P ranks that hold the same parameters each
has an equal stretch of every bucket: its gradient, both moments, and for the update itself the weights. In a step

1. gradients are summed by reduce-scatter: a rank gets its own stretch of the sum;
2. the rank's stretch of the weights is copied out of its parameters, and updated;
3. an all-gather puts the stretches together, and the parameters take their new values from it.

Reduce-scatter and all-gather go inside nodes and along rails, as in `HierarchicalAllReduce`, and the sums have the same
bits. Gradients that are sent during the backward pass are summed whole there; of these a rank takes its stretch. What
is left as it is without sharding: dense parameters over one data-parallel rank, experts over one replica.

Shape legend: P ranks that hold the same parameters, n numbers of a stretch, so that a bucket is a vector of P * n.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops

from locmoe_ops.collectives.hierarchical_reduce import (
    HierarchicalAllGather,
    HierarchicalAllReduce,
    HierarchicalReduceScatter,
)
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.collectives.registry import reduce_tiers
from locmoe_ops.tensor_parallel import slice_of
from locmoe_ops.topology import Topology
from pangu_sigma.model.parameter_groups import group_key, is_expert_parameter, plan_alike, stretch_of
from pangu_sigma.train.gradient_overlap import GradientOverlap, OverlappedGradients
from pangu_sigma.train.gradients import BucketedAllReduce, flatten, restore, squares_of

ROW = 1024

assign = ops.MultitypeFuncGraph("assign")


@assign.register("Tensor", "Tensor")
def _assign_one(parameter: Tensor, value: Tensor) -> Tensor:
    return ops.assign(parameter, value)


class Bucket(NamedTuple):
    """Neighbours among the parameters.

    Attributes:
        start, end: their range, in gradient order.
        sizes: numbers of each.
        summed: their gradients come as sums.
        stretch: n, the numbers of a rank.
    """

    start: int
    end: int
    sizes: Tuple[int, ...]
    summed: bool
    stretch: int


def plan_shards(parameters: Sequence[Parameter], summed: int, ranks: int) -> List[Bucket]:
    """Buckets of `parameters` that are updated and counted alike, the first `summed` of them apart from the others, in
    stretches for `ranks`.
    """
    sizes = [parameter.size for parameter in parameters]
    kinds = [
        (index < summed, *group_key(parameter.name), slice_of(parameter) is not None)
        for index, parameter in enumerate(parameters)
    ]
    return [
        Bucket(start, end, tuple(sizes[start:end]), start < summed, stretch_of(sizes[start:end], ranks))
        for start, end in plan_alike(sizes, kinds)
    ]


def place_in_order(topology: Topology, group: str, rank: int) -> int:
    """Which stretch of a bucket `rank` has in its `group` of `topology`: by its place in the node, then by its node
    (see `HierarchicalReduceScatter`).
    """
    place = 0
    for kind in reduce_tiers(topology, group, rank):
        ranks = topology.group_of(kind, rank)
        place = place * len(ranks) + ranks.index(rank)
    return place


def squares_of_vector(vector: Tensor) -> Tensor:
    """Sum of squares of a long vector, in rows of `ROW`: one running float32 sum would be slow, and lose digits."""
    size = vector.shape[0]
    whole = size // ROW * ROW
    if whole in (0, size):
        return squares_of(vector.reshape((-1, ROW)) if whole else vector)  # (size / ROW, ROW) <- (size,)
    return squares_of(vector[:whole].reshape((-1, ROW))) + squares_of(vector[whole:])  # (whole / ROW, ROW) <- (whole,)


class BucketVectors(nn.Cell):
    """Parameters that are updated alike, one after another in vectors.

    Args:
        parameters: in gradient order.
        group: kind of the group that holds them alike: dp, or edp for experts.
        buckets: see `plan_shards`.

    Attributes:
        own: one <float32>[n] a bucket: the weights that this rank updates, up to date only while they are updated;
            named after the first of the bucket, as whose kind it is treated.
        group, parameters, buckets: as given.
    """

    def __init__(self, parameters: Sequence[Parameter], group: str, buckets: Sequence[Bucket]) -> None:
        super().__init__(auto_prefix=False)
        self.group, self.buckets = group, buckets
        self.parameters = ParameterTuple(parameters)
        self.own = ParameterTuple(
            [
                Parameter(
                    Tensor(np.zeros(b.stretch, np.float32)),
                    name=f"shard.{parameters[b.start].name}",
                    requires_grad=False,
                )
                for b in buckets
            ]
        )
        self.concat = ops.Concat()
        self.map = ops.HyperMap()

    def write_back(self, number: int, vector: Tensor) -> None:
        """Gives the parameters of bucket `number` the values in `vector` <float32>[n], whole."""
        start, end, sizes, _, _ = self.buckets[number]
        parts = ops.split(vector, sizes)
        self.map(assign, self.parameters[start:end], self.map(restore, parts, self.parameters[start:end]))


class Shards(BucketVectors):
    """This rank's stretches of parameters that the P ranks of a group hold alike.

    Args:
        parameters: in gradient order.
        collectives: of this rank.
        group: kind of the group.
        tag: of the gradients; that of the updated weights begins with it.
        summed: of how many parameters, the first, gradients come as sums.
        wire: type in which the other gradients travel; None: float32. Updated weights travel as they are.

    Attributes:
        ranks: P.
        place: which stretch is this rank's.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        collectives: Collectives,
        group: str,
        tag: str,
        summed: int = 0,
        wire: Optional[dtype.Type] = None,
    ) -> None:
        topology, rank = collectives.topology, collectives.rank
        ranks = len(topology.group_of(group, rank))
        super().__init__(parameters, group, plan_shards(parameters, summed, ranks))
        self.ranks = ranks
        self.place = place_in_order(topology, group, rank)
        # A parameter and not a constant, since the graphs of all ranks must be equal (see
        # `locmoe_ops.collectives.tcp.backend`).
        self.index = Parameter(Tensor([self.place], dtype.int32), name=f"shard_of.{group}", requires_grad=False)
        self.scatters = nn.CellList(
            [
                nn.Identity() if b.summed else HierarchicalReduceScatter(collectives, group, f"{tag}/{i}", wire)
                for i, b in enumerate(self.buckets)
            ]
        )
        self.gathers = nn.CellList(
            [HierarchicalAllGather(collectives, group, f"{tag}/updated/{i}") for i in range(len(self.buckets))]
        )
        tensor = topology.tensor
        self.weights = tuple(1.0 / tensor if slice_of(parameters[b.start]) is None else 1.0 for b in self.buckets)

    def construct(self, gradients: Tuple[Tensor, ...]) -> Tuple[Tuple[Tensor, ...], Tensor]:
        """This rank's stretches of the summed gradients, and their sum of squares, of which the sum over all ranks of
        the groups `tp` and of this one is that of the parameters.
        """
        stretches, squares = (), 0.0
        for number, (start, end, _, summed, _) in enumerate(self.buckets):
            vector = self.flat(gradients[start:end], number)
            stretch = self.cut(vector) if summed else self.scatters[number](vector)
            squares = squares + squares_of_vector(stretch) * self.weights[number]
            stretches = stretches + (stretch,)  # type: ignore[assignment] # graph mode knows tuples, not lists
        return stretches, squares

    def take(self) -> None:
        """Copies this rank's stretches of the weights to `own`."""
        for number, (start, end, _, _, _) in enumerate(self.buckets):
            ops.assign(self.own[number], self.cut(self.flat(self.parameters[start:end], number)))

    def spread(self) -> None:
        """Gives the parameters the values that all ranks have in `own`."""
        for number, (_, _, sizes, _, _) in enumerate(self.buckets):
            self.write_back(number, self.gathers[number](self.own[number] * 1.0)[: sum(sizes)])

    def flat(self, tensors: Tuple[Tensor, ...], number: int) -> Tensor:
        """The tensors of bucket `number` as one vector <float32>[P * n], with zeros at its end."""
        _, _, sizes, _, stretch = self.buckets[number]
        parts = self.map(flatten, tensors)
        rest = stretch * self.ranks - sum(sizes)
        if rest:
            parts = parts + (ops.zeros((rest,), dtype.float32),)
        return self.concat(parts)

    def cut(self, vector: Tensor) -> Tensor:
        """This rank's stretch of a bucket's vector."""
        return ops.gather(vector.reshape((self.ranks, -1)), self.index, 0).reshape((-1,))  # (n,) <- (1, n) <- (P, n)


class ShardedExchange(nn.Cell):
    """`GradientExchange` for optimizer state that is shared out.

    Args:
        parameters, statistics_size, collectives, overlap, wire: as of `GradientExchange`.
        hosted: experts are updated by the host.

    Attributes:
        targets: stretches of dense parameters; then stretches of experts, or where these have one replica or are
            updated by the host, the experts' parameters.

    Inputs: as `GradientExchange`. Outputs: the gradients of `targets`; the summed statistics; the sum of squares, as
    there, to rounding.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        statistics_size: int,
        collectives: Collectives,
        hosted: bool,
        overlap: Optional[GradientOverlap] = None,
        wire: Optional[dtype.Type] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        dense = [p for p in parameters if not is_expert_parameter(p.name)]
        experts = [p for p in parameters if is_expert_parameter(p.name)]
        topology = collectives.topology
        self.dense = len(dense)
        self.overlapped = OverlappedGradients(overlap)
        self.first = self.overlapped.count
        self.sum_statistics = HierarchicalAllReduce(collectives, "dp", "gradient/statistics")
        self.dense_shards = Shards(dense, collectives, "dp", "gradient/dense", self.first, wire)
        self.whole = bool(experts) and (hosted or topology.expert_data == 1)
        self.cut = bool(experts) and not self.whole
        self.expert_shards, self.sum_experts = nn.Identity(), nn.Identity()
        if self.cut:
            self.expert_shards = Shards(experts, collectives, "edp", "gradient/experts", wire=wire)
        if self.whole:
            shapes = [p.shape for p in experts]
            self.sum_experts = BucketedAllReduce(shapes, collectives, "edp", "gradient/experts", wire)
        replicas = topology.expert_data
        self.weights = tuple((1.0 if slice_of(p) is not None else 1.0 / topology.tensor) / replicas for p in experts)
        self.sum_squares = collectives.all_reduce("world", "gradient/norm")
        self.targets = ParameterTuple([*self.dense_shards.own, *(self.expert_shards.own if self.cut else experts)])

    @property
    def shards(self) -> List[Shards]:
        """All of this rank's, in the order of `targets`."""
        return [self.dense_shards, self.expert_shards] if self.cut else [self.dense_shards]

    def construct(self, gradients: Tuple[Tensor, ...], statistics: Tensor) -> Tuple[Tuple[Tensor, ...], Tensor, Tensor]:
        statistics = self.sum_statistics(statistics)
        dense = self.overlapped(gradients, statistics)
        summed, squares = self.dense_shards(dense + gradients[self.first : self.dense])
        if self.whole:
            experts = self.sum_experts(gradients[self.dense :])
            for gradient, weight in zip(experts, self.weights):
                squares = squares + squares_of(gradient) * weight
            summed = summed + experts
        if self.cut:
            experts, of_experts = self.expert_shards(gradients[self.dense :])
            summed, squares = summed + experts, squares + of_experts
        return summed, statistics, self.sum_squares(squares.reshape(1)).reshape(())

    def take_share(self) -> None:
        """Copies this rank's stretches of the weights out of the parameters, before the update."""
        self.dense_shards.take()
        if self.cut:
            self.expert_shards.take()

    def spread_share(self) -> None:
        """Gives the parameters everybody's updated stretches, after the update."""
        self.dense_shards.spread()
        if self.cut:
            self.expert_shards.spread()
