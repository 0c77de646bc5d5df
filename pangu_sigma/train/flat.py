"""Biases and norms as one long vector: measured, clipped and updated together (`optimizer.flat`).

More than half of a network's tensors are such, and hold less than a thousandth of its numbers: on Ascend each would
take three kernels for its norm, one for clipping and one for Adam, of which the launch is all the cost. Put together in
vectors, they take two each, to be cut out and to be given their new values. Matrices stay by themselves: to copy
them into a vector and back, 24 bytes a number, takes longer than the launches that it saves.

A network reads tensors, not vectors, so that weights are copied before the update and after it. Where optimizer state
is shared out over ranks, all that a rank updates lies in vectors anyway (`pangu_sigma.train.sharding`).

Shape legend: n numbers of a vector.
"""

from typing import List, Optional, Sequence, Tuple

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from pangu_sigma.config.schema_run import OptimizerConfig
from pangu_sigma.model.parameter_groups import decays, is_expert_parameter
from pangu_sigma.train.gradient_overlap import GradientOverlap
from pangu_sigma.train.gradients import GradientExchange, flatten
from pangu_sigma.train.sharding import BucketVectors, ShardedExchange, plan_shards, squares_of_vector


class Bundles(BucketVectors):
    """What `Shards` is for several ranks, of one: the vectors are whole.

    Args:
        parameters, group: as of `BucketVectors`.

    Attributes:
        ranks, place: 1 and 0.

    Input: one <float32> tensor a parameter. Output: one <float32>[n] a bucket.
    """

    def __init__(self, parameters: Sequence[Parameter], group: str) -> None:
        super().__init__(parameters, group, plan_shards(parameters, len(parameters), 1))
        self.ranks, self.place = 1, 0

    @property
    def firsts(self) -> List[Parameter]:
        """The first parameter of each bucket."""
        return [self.parameters[bucket.start] for bucket in self.buckets]

    def construct(self, tensors: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        return self.vectors(tensors)

    def vectors(self, tensors: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        """The output for `tensors`."""
        vectors: Tuple[Tensor, ...] = ()
        for start, end, _, _, _ in self.buckets:
            vectors = vectors + (self.concat(self.map(flatten, tensors[start:end])),)
        return vectors

    def take(self) -> None:
        """Copies the weights to `own`."""
        for number, vector in enumerate(self.vectors(self.parameters[:])):
            ops.assign(self.own[number], vector)

    def spread(self) -> None:
        """Gives the parameters the values in `own`."""
        for number in range(len(self.buckets)):
            self.write_back(number, self.own[number] * 1.0)


class FlatExchange(GradientExchange):
    """`GradientExchange`, after which biases and norms are put together.

    Args:
        parameters, statistics_size, collectives, overlap, wire: as of `GradientExchange`.
        hosted: experts are updated by the host, tensor by tensor.

    Attributes:
        targets: vectors of dense parameters and of experts; then the dense parameters that are in none, and the
            experts'.

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
        super().__init__(parameters, statistics_size, collectives, overlap, wire)
        dense = [p for p in parameters if not is_expert_parameter(p.name)]
        experts = [p for p in parameters if is_expert_parameter(p.name)]
        self.alone = sum(decays(p.name) for p in dense)  # dense ones by themselves, the first (see ordered_parameters)
        self.alone_of_experts = len(experts) if hosted else sum(decays(p.name) for p in experts)
        self.bundles = Bundles(dense[self.alone :], "dp")
        self.bundles_experts = self.alone_of_experts < len(experts)
        self.of_experts: nn.Cell = nn.Identity()
        own, large = [*self.bundles.own], experts[: self.alone_of_experts]
        firsts_of_experts: List[Parameter] = []
        if self.bundles_experts:
            self.of_experts = Bundles(experts[self.alone_of_experts :], "edp")
            own, firsts_of_experts = own + [*self.of_experts.own], self.of_experts.firsts
        self.targets = ParameterTuple([*own, *dense[: self.alone], *large])
        self.dense_squares.weigh([*dense[: self.alone], *self.bundles.firsts])
        self.expert_squares.weigh([*large, *firsts_of_experts])

    @property
    def shards(self) -> List[nn.Cell]:
        """Parameters that are updated in vectors, in the order of `targets`."""
        return [self.bundles, self.of_experts] if self.bundles_experts else [self.bundles]

    def construct(self, gradients: Tuple[Tensor, ...], statistics: Tensor) -> Tuple[Tuple[Tensor, ...], Tensor, Tensor]:
        dense, statistics = self.sum_dense(gradients[: self.dense], statistics)
        vectors, dense = self.bundles(dense[self.alone :]), dense[: self.alone]
        squares = self.dense_squares.total(self.dense_squares.each(dense) + _each_vector(vectors))
        if not self.has_experts:
            return vectors + dense, statistics, squares
        experts = self.sum_experts(gradients[self.dense :])
        of_experts: Tuple[Tensor, ...] = ()
        if self.bundles_experts:
            of_experts = self.of_experts(experts[self.alone_of_experts :])
        experts = experts[: self.alone_of_experts]
        own = self.expert_squares.total(self.expert_squares.each(experts) + _each_vector(of_experts))
        squares = squares + self.sum_squares(own.reshape(1)).reshape(())
        return vectors + of_experts + dense + experts, statistics, squares

    def take_share(self) -> None:
        """Copies biases and norms into the vectors, before the update."""
        self.bundles.take()
        if self.bundles_experts:
            self.of_experts.take()

    def spread_share(self) -> None:
        """Gives biases and norms their updated values, after the update."""
        self.bundles.spread()
        if self.bundles_experts:
            self.of_experts.spread()


def _each_vector(vectors: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
    """The sum of squares of each."""
    squares: Tuple[Tensor, ...] = ()
    for vector in vectors:
        squares = squares + (squares_of_vector(vector),)
    return squares


def gradient_exchange(
    parameters: Sequence[Parameter],
    statistics_size: int,
    collectives: Collectives,
    options: OptimizerConfig,
    overlap: Optional[GradientOverlap] = None,
    wire: Optional[dtype.Type] = None,
) -> nn.Cell:
    """What sums gradients and measures them.

    Args:
        parameters, statistics_size, collectives, overlap, wire: as of `GradientExchange`.
        options: the optimizer's; `flat` is resolved, where it is null nothing is put together.

    Returns: a `ShardedExchange` where `optimizer.zero` asks for one and there are ranks to share with; else a
        `FlatExchange` or a `GradientExchange`.
    """
    hosted = options.expert_state != "device"
    if options.zero != "none" and collectives.topology.data > 1:
        return ShardedExchange(parameters, statistics_size, collectives, hosted, overlap, wire)
    if options.flat:
        return FlatExchange(parameters, statistics_size, collectives, hosted, overlap, wire)
    return GradientExchange(parameters, statistics_size, collectives, overlap, wire)
