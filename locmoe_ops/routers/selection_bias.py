"""Biases on the scores that experts are selected by, which move the choice away from the probabilities alone.

Such a bias changes which expert is picked and nothing else: the gate weight stays the expert's own probability, so
gradients keep their form and the losses see what the gate says. Both of ours go beyond LocMoE's paper.

Load balance (`BalanceBias`): the load-balancing loss has little grip on a gate without weights. It can only bend hidden
states, and a softmax over block means is nearly flat. A bias for each expert, moved after every step towards what the
load lacks, acts on the picks at once and on no gradient (loss-free balancing, Wang et al., arXiv 2408.15664).

Locality (`LocalityBias`): parameters are shared by data parallelism, so where all nodes see the same data a loss can
only pull their routers in opposite directions, which cancel. A bias that depends on the token's home does not cancel:
it acts on the choice and on nothing that is shared. Home and locality refer to the given layout, never to the
processes that run, so one process computes what many would.

Shape legend: T tokens of this rank, n experts of a group, G groups, E = G * n experts, V nodes, M sparse layers.
"""

from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router, RoutingShape, local_experts_of_nodes
from locmoe_ops.topology import ExpertPlacement, Topology

# Far above any spread of probabilities that routing should overrule, and low enough that a locality bias at full
# strength still wins.
LIMIT = 0.5
LOCALITY_KINDS = ("bias", "margin")


class SelectionBias(nn.Cell):
    """Base of all biases on selection.

    Inputs: rest <float32>[T, n], probabilities of the experts that may still be picked, negative ones for the others;
    home, group <int32>[T]. Output: <float32>[T, n]; the largest is picked.

    Attributes:
        bins: B, of the histograms that `required` gives; 0 for a bias that does not follow quantiles.
    """

    bins = 0

    def required(self, biased: Tensor, group: Tensor) -> Tensor:
        """See `balance.QuantileBias.required`, with the same `biased` and `group`; of biases with `bins` alone."""
        raise NotImplementedError

    def construct(self, rest: Tensor, home: Tensor, group: Tensor) -> Tensor:
        """The biased scores for `rest` and the tokens' `home` and `group`."""
        raise NotImplementedError


class Sum(SelectionBias):
    """Several biases: what each would add to the probabilities, added up.

    Args:
        terms: the biases. Checkpoints know their parameters by the name of this attribute.

    Inputs rest, home, group, and output: as of `SelectionBias`.
    """

    def __init__(self, terms: Sequence[SelectionBias]) -> None:
        super().__init__()
        self.terms = nn.CellList(list(terms))
        self.bins = max((term.bins for term in terms), default=0)

    def required(self, biased: Tensor, group: Tensor) -> Tensor:
        """See `SelectionBias.required`: that of the one of the terms that has it, for `biased` and `group`."""
        found = Tensor(0.0, dtype.float32)
        for term in self.terms:
            if term.bins:
                found = term.required(biased, group)
        return found

    def construct(self, rest: Tensor, home: Tensor, group: Tensor) -> Tensor:
        total = rest
        for term in self.terms:
            total = total + (term(rest, home, group) - rest)
        return total


class BalanceBias(SelectionBias):
    """Adds a bias to the score of each expert of the token's group; the same on every rank.

    It is a parameter that no optimizer touches and that checkpoints keep; `BalanceUpdate` moves it.

    Args:
        shape: sizes.

    Inputs rest, home, group, and output: as of `SelectionBias`.
    """

    def __init__(self, shape: RoutingShape) -> None:
        super().__init__()
        self.balance_bias = Parameter(
            Tensor(np.zeros((shape.num_groups, shape.per_group), np.float32)), name="balance_bias", requires_grad=False
        )

    def construct(self, rest: Tensor, home: Tensor, group: Tensor) -> Tensor:
        return rest + ops.gather(self.balance_bias, group, 0)  # (T, n) + (T, n) <- (G, n)


class BalanceUpdate(nn.Cell):
    """Moves the biases of all layers after a step: `b += rate * clip(1 - load / mean load, -1, 1)`, then |b| <= LIMIT.

    The load of an expert is the number of assignments to it, before drops, over all ranks; the mean is over its group.
    The published rule takes the sign of the same error; in proportion, a balanced expert is left alone.

    Args:
        biases: of the sparse layers, in order. rate: above 0.

    Inputs: assigned <float32>[M, E], summed over ranks; finite <bool> scalar: nothing moves where it is false. Output:
    the largest bias in size, <float32> scalar.
    """

    def __init__(self, biases: Sequence[BalanceBias], rate: float) -> None:
        super().__init__(auto_prefix=False)
        # Without a prefix, parameters keep the names that their routers give them.
        self.biases = nn.CellList(list(biases), auto_prefix=False)
        self.rate = rate

    def construct(self, assigned: Tensor, finite: Tensor) -> Tensor:
        largest = Tensor(0.0, dtype.float32)
        rate = self.rate * ops.cast(finite, dtype.float32)
        for layer, bias in enumerate(self.biases):
            load = assigned[layer].reshape(bias.balance_bias.shape)  # (G, n) <- (E,)
            moved = ops.clamp(bias.balance_bias + rate * self.error(load), -LIMIT, LIMIT)
            ops.assign(bias.balance_bias, moved)
            largest = ops.maximum(largest, ops.abs(moved).max())
        return largest

    def error(self, load: Tensor) -> Tensor:
        """<float32>[G, n], in [-1, 1]: how much each expert lacks at this `load` <float32>[G, n]."""
        return ops.clamp(1.0 - load / ops.maximum(load.mean(-1, keep_dims=True), 1.0), -1.0, 1.0)


def balance_biases(network: nn.Cell) -> List[BalanceBias]:
    """The balance biases of all routers in `network`, in the order of its layers."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, BalanceBias)]


class LocalExperts(nn.Cell):
    """Which experts of a token's group are on its home node.

    Args:
        shape: sizes. layout, placement: the cluster that homes refer to, and the experts' places in it.

    Inputs: home <int32>[T], ranks of `layout`; group <int32>[T].
    Output: <float32>[T, n], 1 for those, 0 for the others.
    """

    def __init__(self, shape: RoutingShape, layout: Topology, placement: ExpertPlacement) -> None:
        super().__init__()
        self.num_groups = shape.num_groups
        self.ranks_per_node = layout.ranks_per_node
        table = local_experts_of_nodes(layout, placement).reshape(-1, shape.per_group)  # (V*G, n) <- (V, E)
        self.table = Tensor(table)

    def construct(self, home: Tensor, group: Tensor) -> Tensor:
        node = ops.floor_div(home, self.ranks_per_node)
        return ops.gather(self.table, node * self.num_groups + group, 0)  # (T, n) <- (V*G, n)


class LocalityBias(SelectionBias):
    """Favours the experts on a token's home node.

    `bias`: strength is added to a local expert's probability. It wins where it lacks less than `strength` to the best.
    `margin`: a local expert wins where its probability exceeds (1 - strength) times the best one's; among several, the
    likeliest.

    At strength 0 both leave every choice as it is. At strength 1 a token stays at home if its node has an expert for
    it, unless that one's probability vanishes against the best one's in float32.

    Args:
        kind: `bias` or `margin`. shape: sizes.
        layout, placement: the cluster that homes refer to, and the experts' places in it.
        strength: in [0, 1], until `set_locality_strength` changes it. It is a parameter that no optimizer touches, so
            that a schedule needs no new graph and a checkpoint keeps what the run was trained with.

    Inputs rest, home, group, and output: as of `SelectionBias`.
    """

    def __init__(
        self, kind: str, shape: RoutingShape, layout: Topology, placement: ExpertPlacement, strength: float = 0.0
    ) -> None:
        super().__init__()
        if kind not in LOCALITY_KINDS:
            raise InputError(f"locality_bias: found '{kind}', expected one of {', '.join(LOCALITY_KINDS)}")
        self.by_margin = kind == "margin"
        self.local = LocalExperts(shape, layout, placement)
        self.local_strength = Parameter(
            Tensor(_checked(strength), dtype.float32), name="local_strength", requires_grad=False
        )

    def construct(self, rest: Tensor, home: Tensor, group: Tensor) -> Tensor:
        local = self.local(home, group)
        if not self.by_margin:
            return rest + self.local_strength * local
        best = rest.max(-1, keepdims=True)
        near_enough = ops.cast(rest > (1.0 - self.local_strength) * best, dtype.float32)  # none at strength 0
        return rest + 2.0 * near_enough * local


def set_locality_strength(network: nn.Cell, value: float) -> None:
    """Gives every locality bias in `network` the strength `value`; 0 turns them off. Compiled graphs stay valid.

    Raises InputError for a value outside [0, 1].
    """
    strength = _checked(value)
    for bias in locality_biases(network):
        bias.local_strength.set_data(Tensor(strength, dtype.float32))


def current_locality_strength(network: nn.Cell) -> Optional[float]:
    """The strength of the locality biases in `network`, as last set; None where there are none."""
    strengths = [float(bias.local_strength.asnumpy()) for bias in locality_biases(network)]
    return strengths[0] if strengths else None


def locality_biases(network: nn.Cell) -> Iterator[LocalityBias]:
    """The locality biases of all routers in `network`."""
    return (cell for _, cell in network.cells_and_names() if isinstance(cell, LocalityBias))


def switch_off_locality_rules(network: nn.Cell) -> None:
    """Turns off what keeps tokens on their nodes in `network`: local terms, and rules of the routers' own."""
    set_locality_strength(network, 0.0)
    for _, cell in network.cells_and_names():
        if isinstance(cell, Router):
            cell.set_locality_rules(False)


@contextmanager
def without_locality_rules(network: nn.Cell) -> Iterator[None]:
    """As `switch_off_locality_rules` for `network`, and afterwards all is as before."""
    strength = current_locality_strength(network)
    switch_off_locality_rules(network)
    try:
        yield
    finally:
        for _, cell in network.cells_and_names():
            if isinstance(cell, Router):
                cell.set_locality_rules(True)
        if strength is not None:
            set_locality_strength(network, strength)


def _checked(strength: float) -> np.float32:
    if not 0.0 <= strength <= 1.0:
        raise InputError(f"locality_bias: strength is {strength}, expected 0 to 1")
    return np.float32(strength)
