"""What every router does around its own choice of experts.

Shape legend: T tokens of this rank, k choices, E experts, G groups, n = E / G, S segments, V nodes.
A compiled step cannot pass named tuples (their gradients silently vanish in MindSpore graphs), hence dicts of tensors.
"""

from dataclasses import dataclass
from typing import Dict, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.topology import ExpertPlacement, Topology, local_experts_table


@dataclass(frozen=True)
class RoutingShape:
    """The static choices that all routers share. Raises InputError where they do not fit together."""

    hidden_size: int
    num_experts: int
    num_groups: int = 1
    top_k: int = 1

    def __post_init__(self) -> None:
        if self.num_experts % self.num_groups:
            raise InputError(
                f"num_groups {self.num_groups} does not divide num_experts {self.num_experts}; expected a divisor"
            )
        if not 1 <= self.top_k <= self.per_group:
            raise InputError(
                f"top_k {self.top_k} is out of range; expected 1 to {self.per_group}, the experts of a group"
            )

    @property
    def per_group(self) -> int:
        """n: experts that compete for a token."""
        return self.num_experts // self.num_groups


def one_hot(index: Tensor, depth: int) -> Tensor:
    """<float32>[T, depth] <- index <int32>[T]; an index out of range gives a row of zeros."""
    return ops.one_hot(index, depth, Tensor(1.0, dtype.float32), Tensor(0.0, dtype.float32))


class Router(nn.Cell):
    """Chooses k experts of its group for each token. Subclasses override `choose`.

    1. `choose`: experts within the group, their weights, and the probabilities the losses are made of.
    2. Global ids: group * n + expert within the group.
    3. `losses` (none here).

    Inputs: x <float>[T, d]; tokens, a dict of ids <int32>[T], group <int32>[T], home <int32>[T] (rank of `layout` that
    the token belongs to) and seed <int32>[T].
    Output: a dict of expert <int32>[T, k], weight <float32>[T, k], the weighted losses aux_loss and locality_loss,
    scalars, and seen <float>[T, d], what the choice was made by (see `seen`). A router that was told to offer second
    experts adds second_expert <int32>[T] (E: none) and second_weight <float32>[T]. One that counts undecided tokens
    adds undecided <float32>[T], see `undecided`.
    """

    def __init__(self, shape: RoutingShape) -> None:
        super().__init__()
        self.num_experts = shape.num_experts
        self.num_groups = shape.num_groups
        self.per_group = shape.per_group
        self.top_k = shape.top_k
        self.by_word = False  # whether `tokens` must hold `word`, see `LocMoERouter`
        self.counts_undecided = False  # as its declaration says (`RouterSpec.counts_undecided`)
        self.offers_second = False
        self.second = nn.Identity()

    def offer_second(self, second: nn.Cell) -> None:
        """Adds what re-picking needs, of a `SecondExpert`, to the output. Raises InputError where a router has no such
        thing.
        """
        raise InputError(f"{type(self).__name__} has no second experts for overflow to be re-picked to")

    def construct(self, x: Tensor, tokens: Dict[str, Tensor]) -> Dict[str, Tensor]:
        choice, weight, probabilities = self.choose(x, tokens)
        expert = choice + (tokens["group"] * self.per_group).reshape(-1, 1)
        aux_loss, locality_loss = self.losses(expert, probabilities, tokens)
        routing = {
            "expert": expert,
            "weight": weight,
            "aux_loss": aux_loss,
            "locality_loss": locality_loss,
            "seen": self.seen(x, tokens),
        }
        if self.offers_second:
            second, second_weight = self.second(choice, probabilities, tokens["home"], tokens["group"])
            routing["second_expert"], routing["second_weight"] = second, second_weight
        if self.counts_undecided:
            routing["undecided"] = self.undecided(x, tokens)
        return routing

    def seen(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        """The vectors whose angles to each other and to the gate's weights tell what the router does, <float>[T, d];
        without jitter.
        """
        return x

    def undecided(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        """<float32>[T]: 1 for each token that the router's rule leaves undecided between experts, 0 for the others."""
        raise NotImplementedError

    def choose(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        """-> expert within the group <int32>[T, k], weight <float32>[T, k], probabilities <float32>[T, n]."""
        raise NotImplementedError

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        """-> the weighted auxiliary and locality losses; a router without losses returns zeros."""
        return Tensor(0.0, dtype.float32), Tensor(0.0, dtype.float32)


class RoutingStatistics(nn.Cell):
    """Counts and probabilities per expert, summed over the tokens of a segment on all ranks.

    Args:
        scope: what a segment is: the tokens whose home is one `rank` or one `node` of `layout`, or all tokens
            (`global`).
        layout: the cluster that homes refer to; given, not derived from the processes that run.

    Inputs: expert <int32>[T, k]; probabilities <float32>[T, n]; group, home <int32>[T].
    Output: counts (assignments / k) and probability sums, <float32>[S, E] each.
    """

    def __init__(self, shape: RoutingShape, scope: str, layout: Topology, collectives: Collectives, tag: str) -> None:
        super().__init__()
        self.num_experts, self.num_groups, self.top_k = shape.num_experts, shape.num_groups, shape.top_k
        self.segments = segment_count(scope, layout)
        self.ranks_a_segment = layout.world_size // self.segments
        self.reduce = collectives.all_reduce("dp", f"{tag}/statistics")
        self.matmul = ops.MatMul(transpose_a=True)

    def construct(self, expert: Tensor, probabilities: Tensor, group: Tensor, home: Tensor) -> Tuple[Tensor, Tensor]:
        counts = (
            one_hot(expert.reshape(-1), self.num_experts).reshape(-1, self.top_k, self.num_experts).sum(1) / self.top_k
        )
        group_mask = one_hot(group, self.num_groups)
        spread = (group_mask.expand_dims(-1) * probabilities.expand_dims(1)).reshape(
            -1, self.num_experts
        )  # (T, E) <- (T, n)
        member = one_hot(ops.floor_div(home, self.ranks_a_segment), self.segments)  # (T, S)
        sums = self.reduce(self.matmul(member, ops.concat((counts, spread), 1)))  # (S, 2E)
        return sums[:, : self.num_experts], sums[:, self.num_experts :]


def segment_count(scope: str, layout: Topology) -> int:
    """S: number of segments of a statistics scope (`rank`, `node` or `global`)."""
    counts = {"rank": layout.world_size, "node": layout.nodes, "global": 1}
    if scope not in counts:
        raise InputError(f"statistics: found '{scope}', expected one of {', '.join(counts)}")
    return counts[scope]


def local_experts_of_nodes(layout: Topology, placement: ExpertPlacement) -> np.ndarray:
    """<float32>[V, E]: 1 where an expert is on the node, seen from the node's first rank."""
    return local_experts_table(layout, placement)[:: layout.ranks_per_node].astype(np.float32)
