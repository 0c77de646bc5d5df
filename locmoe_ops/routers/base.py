"""What every router stands on: what it is told (`RouterContext`), what it gives (`RoutingResult`), and what it does
around its own choice of experts (`Router`).

Shape legend: T tokens of this rank, d hidden size, k choices, E experts, G groups, n = E / G, V nodes, W ranks, D
domains, S statistics groups: the sets of tokens over which a loss takes its means (one rank's, one node's, or all).

A compiled step cannot pass named tuples (their gradients silently vanish in MindSpore graphs), hence dicts of tensors.
"""

from dataclasses import dataclass
from typing import Any, Optional, Tuple, TypedDict

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.kernels import CPU, KernelSet
from locmoe_ops.router_registry import load_router
from locmoe_ops.routers.hash_maps import NodesOfIds, layer_hash_tables
from locmoe_ops.topology import STATISTICS, ExpertPlacement, Topology, local_experts_table, nodes_of_experts


@dataclass(frozen=True)
class RoutingShape:
    """The static sizes that all routers share. Raises InputError where they do not fit together.

    Attributes:
        hidden_size: d. num_experts: E. num_groups: G. top_k: k.
    """

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


@dataclass(frozen=True)
class RouterContext:
    """What one layer's router is built from: the one argument of every router's `build`.

    Attributes:
        name: of the router. options: its section of the configuration, as the options class of its declaration.
        shape: sizes that routers share.
        layout, placement: the cluster that homes and locality refer to, and the experts' places in it. They are given,
            not derived from the processes that run.
        collectives: of the job. tag: names the router's own among them.
        statistics: tokens over which a loss takes its means: those of one `rank`, one `node` or one `expert_parallel`
            group, or all (`global`).
        layer: number of the sparse layer, from 0. seed: of the run.
        selection_bias: a `SelectionBias`, where the configuration asks for one and the router takes it.
        vocab_size: number of token ids; None: not known.
        token_counts: <int64>[G, vocab_size], how often each id occurs in a group's training text.
        sequence_length: tokens of a sequence, whose tokens are neighbours; None: a call has one sequence.
        locality_loss_changes: whether the weight of its locality loss is to be set from step to step (see
            `locmoe_ops.routers.gated.set_locality_loss_weight`).
        rules_change: whether rules of locality are to be switched off at times (see `Router.set_locality_rules`).
        domains: D, of the text.
        id_nodes: <int>[G, vocab_size], the node of the layout that each id belongs to by the documents it occurs in.
        id_map: <int32>[G, vocab_size], or [G, vocab_size, k]: the layer's experts within the group of each id, where a
            file says them.
        reads_files: whether files that its options name are read; False: a checkpoint brings what follows from them, or
            it does not matter.
        kernels: forms of operations for the device.
    """

    name: str
    options: Any
    shape: RoutingShape
    layout: Topology
    placement: ExpertPlacement
    collectives: Collectives
    tag: str = "moe"
    statistics: str = "global"
    layer: int = 0
    seed: int = 1
    selection_bias: Optional[nn.Cell] = None
    vocab_size: Optional[int] = None
    sequence_length: Optional[int] = None
    token_counts: Optional[np.ndarray] = None
    locality_loss_changes: bool = False
    rules_change: bool = False
    domains: int = 1
    id_nodes: Optional[np.ndarray] = None
    id_map: Optional[np.ndarray] = None
    reads_files: bool = True
    kernels: KernelSet = CPU

    @property
    def rng_stream(self) -> int:
        """The stream of the layer's random numbers in a step, unlike all others (see `locmoe_ops.random`)."""
        return 4 * self.layer + 5

    def hash_tables(self, kind: str, top_k: int = 1) -> np.ndarray:
        """<int32>[G, vocab_size], or [G, vocab_size, k] for `top_k` experts an id above 1: the layer's map of kind
        `kind` (`hash_maps.KINDS`) from ids to experts of a group.

        A network that is built without training text, to be filled from a checkpoint or to be measured, has no
        `id_nodes`; in place of `cooccurrence` it then balances by frequency alone.

        Raises InputError where the number of ids is not known.
        """
        if self.vocab_size is None:
            raise InputError(
                f"vocab_size: found none, expected the number of token ids that router '{self.name}' maps to experts"
            )
        nodes = None
        if self.id_nodes is not None:
            nodes = NodesOfIds(self.id_nodes, nodes_of_experts(self.layout, self.placement))
        elif kind == "cooccurrence":
            kind = "frequency"
        groups, per_group = self.shape.num_groups, self.shape.per_group
        return layer_hash_tables(
            kind, groups, per_group, self.vocab_size, self.layer, self.seed, self.token_counts, nodes, top_k
        )


class _PerToken(TypedDict):
    ids: Tensor
    home: Tensor
    seed: Tensor


class _WithWord(_PerToken, total=False):
    word: Tensor


class LayerTokens(_WithWord):
    """What a sparse layer is told of its tokens, <int32>[T] each.

    ids; domain; home, the rank of the layout that a token belongs to; seed, of its random numbers. Where a router needs
    it also word, the token's word vector <float>[T, d].
    """

    domain: Tensor


class _WithGroup(_WithWord):
    group: Tensor


class RouterTokens(_WithGroup, total=False):
    """What a router is told of its tokens: as `LayerTokens`, with the expert group; the domain, like the word vector,
    where it needs it (`Router.needs`).
    """

    domain: Tensor


class _Routed(TypedDict):
    expert: Tensor
    weight: Tensor
    aux_loss: Tensor
    locality_loss: Tensor
    gate_input: Tensor


class RoutingResult(_Routed, total=False):
    """What a router decides.

    expert <int32>[T, k], global ids; weight <float32>[T, k]; aux_loss and locality_loss, weighted scalars; gate_input
    <float>[T, d], see `Router.gate_input`. A router that was told to offer second experts adds second_expert
    <int32>[T] (E: none) and second_weight <float32>[T]. One that counts undecided tokens adds undecided <float32>[T],
    see `Router.undecided`; one that centres its gate values adds value_sums <float32>[E], see `Router.value_sums`; one
    whose selection bias is moved by quantiles adds required <float32>[E * B], see `Router.required`.
    """

    second_expert: Tensor
    second_weight: Tensor
    undecided: Tensor
    value_sums: Tensor
    required: Tensor


def one_hot(index: Tensor, depth: int) -> Tensor:
    """<float32>[T, depth] <- index <int32>[T]; an index out of range gives a row of zeros."""
    return ops.one_hot(index, depth, Tensor(1.0, dtype.float32), Tensor(0.0, dtype.float32))


def spread_over_groups(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """<float32>[T, E], zeros for the experts of other groups, <- `values` <float32>[T, n] of those of the token's
    `group` <int32>[T], one of `num_groups`.
    """
    spread = one_hot(group, num_groups).expand_dims(-1) * values.expand_dims(1)  # (T, G, n)
    return spread.reshape(spread.shape[0], -1)  # (T, E) <- (T, G, n)


class Router(nn.Cell):
    """Chooses k experts of its group for each token. Subclasses override `select`.

    1. `select`: experts within the group, their weights, and the probabilities the losses are made of.
    2. Global ids: group * n + expert within the group.
    3. `losses` (none here).

    Args:
        shape: sizes.

    Inputs: x <float>[T, d]; tokens, `RouterTokens`. Output: `RoutingResult`.
    """

    def __init__(self, shape: RoutingShape) -> None:
        super().__init__()
        self.num_experts = shape.num_experts
        self.num_groups = shape.num_groups
        self.per_group = shape.per_group
        self.top_k = shape.top_k
        self.needs: Tuple[str, ...] = ()  # of `word` and `domain`, what `tokens` must hold
        self.counts_undecided = False  # as its declaration says (`RouterSpec.counts_undecided`)
        self.sums_values = False  # as its declaration says (`RouterCost.sums_values`)
        self.sums_losses = False  # as its declaration says (`RouterCost.sums_losses`)
        self.required_bins = 0  # of the histograms that a bias by quantiles is moved by; 0: there is none
        self.offers_second = False
        self.second = nn.Identity()

    def offer_second(self, second: nn.Cell) -> None:
        """Adds what re-picking needs, of the `SecondExpert` `second`, to the output. Raises InputError where a router
        has no such thing.
        """
        raise InputError(f"{type(self).__name__} has no second experts for overflow to be re-picked to")

    def set_locality_rules(self, on: bool) -> None:
        """Switches rules of its own that keep tokens on their node, where it has any, `on` or off. Compiled graphs stay
        valid. Only where `RouterContext.rules_change`.
        """

    def construct(self, x: Tensor, tokens: RouterTokens) -> RoutingResult:
        choice, weight, probabilities = self.select(x, tokens)
        expert = choice
        if self.num_groups > 1:
            expert = choice + (tokens["group"] * self.per_group).reshape(-1, 1)  # (T, k) <- (T, k) + (T, 1)
        aux_loss, locality_loss = self.losses(expert, probabilities, tokens)
        if self.sums_losses:
            aux_loss = aux_loss + self.token_losses(x, tokens)
        routing: RoutingResult = {
            "expert": expert,
            "weight": weight,
            "aux_loss": aux_loss,
            "locality_loss": locality_loss,
            "gate_input": self.gate_input(x, tokens),
        }
        if self.offers_second:
            second, second_weight = self.second(choice, probabilities, tokens["home"], tokens["group"])
            routing["second_expert"], routing["second_weight"] = second, second_weight
        if self.counts_undecided:
            routing["undecided"] = self.undecided(x, tokens)
        if self.sums_values:
            routing["value_sums"] = self.value_sums(x, tokens)
        if self.required_bins:
            routing["required"] = self.required(x, tokens)
        return routing

    def gate_input(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """The vectors whose angles to each other and to the gate's weights tell what the router does, <float>[T, d]: of
        the layer's input `x` and `tokens`, without jitter.
        """
        return x

    def undecided(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """<float32>[T]: 1 for each of `tokens` (with inputs `x`) that the router's rule leaves undecided between
        experts, 0 for the others.
        """
        raise NotImplementedError

    def value_sums(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """<float32>[E]: of each expert the sum of its gate values over those of `tokens` (with inputs `x`) that are of
        its group, without noise and as they are before they are centred.
        """
        raise NotImplementedError

    def token_losses(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """What is added to the auxiliary loss: a mean over all tokens on all ranks, of what needs no counts of tokens
        elsewhere; weighted, a <float32> scalar. Of `tokens` with inputs `x`.
        """
        raise NotImplementedError

    def required(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """<float32>[E * B]: of each expert a histogram, over those of `tokens` (with inputs `x`) that are of its group,
        of the balance bias with which it would be chosen (see `balance.QuantileBias`).
        """
        raise NotImplementedError

    def expert_by_id(self) -> np.ndarray:
        """<int>[G, V], or [G, V, k]: the experts within the group that each id goes to. Only of routers whose routes
        follow from token ids (`RouterSpec.map_of_ids`).
        """
        raise NotImplementedError

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """The choice for x <float>[T, d] and `tokens`.

        Returns: expert within the group <int32>[T, k], weight <float32>[T, k], probabilities <float32>[T, n].
        """
        raise NotImplementedError

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """The weighted auxiliary and locality losses, <float32> scalars; zeros for a router without losses.

        Args:
            expert: <int32>[T, k], global ids as chosen.
            probabilities: as `select` returned them. tokens: as given to the router.
        """
        return Tensor(0.0, dtype.float32), Tensor(0.0, dtype.float32)


def make_router(context: RouterContext) -> Router:
    """The router that `context` names.

    Raises InputError where there is none of the name, or its `build` returns something else than was declared.
    """
    module = load_router(context.name)
    router = module.build(context)
    if not isinstance(router, Router):
        raise InputError(f"{module.__file__}: build returned a {type(router).__name__}, expected a Router")
    if getattr(context.selection_bias, "bins", 0) != router.required_bins:
        raise InputError(
            f"{module.__file__}: ROUTER's selection_biases hold 'quantile_balance', but its Router has no "
            "required_bins and makes no histograms (see Router.required); expected a GatedRouter, or no such bias"
        )
    return router


class RoutingStatistics(nn.Cell):
    """Counts and probabilities per expert, summed over the tokens of each statistics group on all ranks.

    Args:
        context: of the router; its shape, statistics, layout, collectives and tag.

    Inputs: expert <int32>[T, k]; probabilities <float32>[T, n]; group, home <int32>[T].
    Output: counts (assignments / k) and probability sums, <float32>[S, E] each.
    """

    def __init__(self, context: RouterContext) -> None:
        super().__init__()
        shape, layout = context.shape, context.layout
        self.num_experts, self.num_groups, self.top_k = shape.num_experts, shape.num_groups, shape.top_k
        self.statistics_groups = count_statistics_groups(context.statistics, layout)
        self.ranks_per_statistics_group = layout.world_size // self.statistics_groups
        self.reduce = context.collectives.all_reduce("dp", f"{context.tag}/statistics")
        self.matmul = ops.MatMul(transpose_a=True)

    def construct(self, expert: Tensor, probabilities: Tensor, group: Tensor, home: Tensor) -> Tuple[Tensor, Tensor]:
        chosen = one_hot(expert.reshape(-1), self.num_experts)  # (T*k, E) <- (T, k)
        counts, spread = chosen, probabilities
        if self.top_k > 1:
            counts = chosen.reshape(-1, self.top_k, self.num_experts).sum(1) / self.top_k  # (T, E) <- (T, k, E)
        if self.num_groups > 1:
            spread = spread_over_groups(probabilities, group, self.num_groups)
        member = one_hot(ops.floor_div(home, self.ranks_per_statistics_group), self.statistics_groups)  # (T, S)
        sums = self.reduce(self.matmul(member, ops.concat((counts, spread), 1)))  # (S, 2E) <- (T, S), (T, 2E)
        counts, spread = ops.split(sums, (self.num_experts, self.num_experts), 1)  # (S, E) each <- (S, 2E)
        return counts, spread


class DomainStatistics(nn.Cell):
    """Probabilities per domain and expert, summed over the tokens of each statistics group on all ranks; of one expert
    group.

    Args:
        context: of the router; its domains, statistics, layout, collectives and tag.

    Inputs: probabilities <float32>[T, E]; domain, home <int32>[T]. Output: <float32>[S, D, E].
    """

    def __init__(self, context: RouterContext) -> None:
        super().__init__()
        self.domains, self.num_experts = context.domains, context.shape.num_experts
        self.statistics_groups = count_statistics_groups(context.statistics, context.layout)
        self.ranks_per_statistics_group = context.layout.world_size // self.statistics_groups
        self.reduce = context.collectives.all_reduce("dp", f"{context.tag}/statistics of domains")
        self.matmul = ops.MatMul(transpose_a=True)

    def construct(self, probabilities: Tensor, domain: Tensor, home: Tensor) -> Tensor:
        cell = ops.floor_div(home, self.ranks_per_statistics_group) * self.domains + domain
        member = one_hot(cell, self.statistics_groups * self.domains)  # (T, S*D)
        sums = self.reduce(self.matmul(member, probabilities))  # (S*D, E) <- (T, S*D), (T, E)
        return sums.reshape(self.statistics_groups, self.domains, self.num_experts)  # (S, D, E) <- (S*D, E)


def count_statistics_groups(statistics: str, layout: Topology) -> int:
    """S: into how many sets `statistics` (one of `STATISTICS`) divides the tokens of the cluster `layout`. Each is of
    consecutive ranks.
    """
    if statistics not in STATISTICS:
        raise InputError(f"statistics: found '{statistics}', expected one of {', '.join(STATISTICS)}")
    return layout.count_sets(statistics)


def statistics_by_node(statistics: str, layout: Topology) -> str:
    """`statistics`, or `node` where its sets are larger than the nodes of `layout`: for what is a matter of nodes."""
    return statistics if count_statistics_groups(statistics, layout) >= layout.nodes else "node"


def local_experts_of_nodes(layout: Topology, placement: ExpertPlacement) -> np.ndarray:
    """<float32>[V, E]: 1 where an expert of `placement` is on the node, seen from the first rank of each node of
    `layout`.
    """
    return local_experts_table(layout, placement)[:: layout.ranks_per_node].astype(np.float32)
