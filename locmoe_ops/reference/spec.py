"""What goes into the reference MoE layer and what comes out of it.

Shape legend: T tokens of one rank, d hidden size, f inner width of an expert, E experts in all, G expert groups,
n = E/G experts of a group, k experts a token is sent to, m shared experts, V vocabulary size. Floating-point inputs
may have any precision; all work is done in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.reference import topk
from locmoe_ops.topology import ExpertPlacement, Topology

ROUTERS = ("hash", "switch", "locmoe", "gshard", "faster_moe", "ta_moe", "etr", "smile", "c2r", *topk.ROUTERS)
WITHOUT_SECOND = ("hash", "gshard", *topk.ROUTERS)
GATES = ("grap", "dense")
ACTIVATIONS = ("gelu", "gelu_tanh", "fast_gelu", "relu")
LOCAL_TERMS = ("none", "bias", "margin")
STATISTICS = ("rank", "node", "expert_parallel", "global")
PRIORITIES = ("position", "weight")
OVERFLOWS = ("drop", "repick")
TIES = ("first", "unrectified", "noise")
NORMALISATIONS = ("none", "token")
HASH_SCORES = ("none", *topk.SCORE_FUNCTIONS)


@dataclass(frozen=True)
class LayerSpec:
    """Every static choice of one MoE layer.

    `layout` and `placement` describe the cluster that locality and statistics refer to; a token names its rank of that
    cluster by its `home`. How many ranks are simulated is another matter: it is the number of `RankTokens` given.
    Raises `InputError`.
    """

    layout: Topology
    placement: ExpertPlacement
    capacity: int  # slots per (simulated source rank, expert)
    router: str = "locmoe"  # one of ROUTERS
    gate: str = "grap"  # grap | dense; of the locmoe router only
    domain_groups: tuple[int, ...] = (0,)  # expert group of each domain
    top_k: int = 1
    scale_by_gate: bool = True
    activation: str = "gelu"  # gelu | gelu_tanh | fast_gelu | relu
    drop_priority: str = "position"  # position | weight
    # drop | repick: what finds no slot goes to the token's best local expert left, if that has one
    overflow: str = "drop"
    far_capacity: Optional[int] = None  # slots for an expert on another node than its source rank; None: `capacity`
    # a token travels to another node once, and each has room for so many of a source rank's; None: each assignment
    # travels by itself
    copies: Optional[int] = None
    # node of each simulated source rank; needed with far_capacity and with copies
    source_nodes: Optional[tuple[int, ...]] = None
    statistics: str = "global"  # rank | node | expert_parallel | global
    alpha: float = 0.01  # weight of L_aux
    mu: float = 0.01  # weight of L_loc
    smoothing: float = 0.1  # share of D_l that is spread over all experts of the group
    local_term: str = "none"  # none | bias | margin
    local_strength: float = 0.0  # of the locality bias that `local_term` names; 0..1
    max_remote_fraction: float = 1.0  # faster_moe: share of a home's tokens that may leave its node
    bandwidth_ratio: float = 1.0  # ta_moe: of a link inside a node to one between nodes
    temperature: float = 1.0  # etr: divides cosines
    ties: str = "first"  # locmoe: first | unrectified | noise; what decides tokens with fewer than k values above 0
    normalise: str = "none"  # locmoe: none | token; token: values to mean 0 and deviation 1 over the group's experts
    value_scale: float = 1.0  # locmoe: factor on the values before the softmax
    rectify: bool = True  # locmoe: the ReLU of Eq. 2
    divergence: float = 0.0  # locmoe: weight of the divergence loss over domains
    topk_rules: topk.TopKRules = topk.TopKRules()  # topk, node_limited, moge
    hash_score: str = "none"  # hash: none | softmax | sigmoid | sqrt_softplus: of a gate; none: weights 1/k
    hash_renormalise: bool = True  # hash: scores over their sum over a token's experts
    hash_scale: float = 1.0  # hash: factor on weights by scores
    expert_choice: bool = False  # etr: experts choose among the tokens of a home, each its even share
    library_cap: bool = False  # faster_moe: the fastmoe library's rule
    num_nodes: int = 1  # smile: stretches of a group's experts that the first router chooses among
    beta: float = 0.01  # smile: weight of the loss inside nodes; alpha is that over nodes

    def __post_init__(self) -> None:
        _require_choice("router", self.router, ROUTERS)
        _require_choice("gate", self.gate, GATES)
        _require_choice("activation", self.activation, ACTIVATIONS)
        _require_choice("ties", self.ties, TIES if self.router == "locmoe" else TIES[:1])
        _require_choice("normalise", self.normalise, NORMALISATIONS)
        _require(self.value_scale > 0.0, "value_scale", self.value_scale, "above 0")
        _require_choice("drop_priority", self.drop_priority, PRIORITIES)
        _require_choice("overflow", self.overflow, OVERFLOWS if self.router not in WITHOUT_SECOND else OVERFLOWS[:1])
        _require_choice("statistics", self.statistics, STATISTICS)
        _require_choice("local_term", self.local_term, LOCAL_TERMS)
        _require_choice("hash_score", self.hash_score, HASH_SCORES if self.router == "hash" else HASH_SCORES[:1])
        least, most = (2, 2) if self.renormalises else (1, self.experts_per_group)
        _require(least <= self.top_k <= most, "top_k", self.top_k, f"{least}..{most} ({self.router} router)")
        _require(self.capacity >= 1, "capacity", self.capacity, "at least 1")
        _require(0.0 < self.smoothing <= 1.0, "smoothing", self.smoothing, "above 0, at most 1")
        if self.far_capacity is not None:
            _require(self.far_capacity >= 0, "far_capacity", self.far_capacity, "at least 0")
        if self.copies is not None:
            _require(self.copies >= 0, "copies", self.copies, "at least 0")
        if self.far_capacity is not None or self.copies is not None:
            _require(
                self.source_nodes is not None,
                "source_nodes",
                None,
                "a node for each source rank, for far_capacity and copies",
            )
        known = all(0 <= group < self.num_groups for group in self.domain_groups)
        _require(known, "domain_groups", self.domain_groups, f"groups 0..{self.num_groups - 1}")
        expected_ep = f"layout.expert = {self.layout.expert}"
        _require(self.layout.expert == self.placement.ep, "placement.ep", self.placement.ep, expected_ep)

    @property
    def num_experts(self) -> int:
        return self.placement.num_experts

    @property
    def num_groups(self) -> int:
        return self.placement.num_groups

    @property
    def experts_per_group(self) -> int:
        return self.num_experts // self.num_groups

    @property
    def learns_gate(self) -> bool:
        """Whether the router owns a weight matrix (E,d)."""
        return (
            self.router in ("switch", "gshard", "faster_moe", "ta_moe", "smile", "c2r", *topk.ROUTERS)
            or (self.router == "locmoe" and self.gate == "dense")
            or (self.router == "hash" and self.hash_score != "none")
        )

    @property
    def gate_rows(self) -> int:
        """Rows of the learned gate, those of a group being neighbours: one an expert; of smile one for each node and
        each expert inside one.
        """
        if self.router != "smile":
            return self.num_experts
        return self.num_groups * (self.num_nodes + self.experts_per_group // self.num_nodes)

    @property
    def renormalises(self) -> bool:
        """Whether the weights of a token's experts are their probabilities over the sum of these."""
        return self.router == "gshard" or (self.router == "faster_moe" and self.library_cap)

    def capacities(self, source: int) -> list[int]:
        """Slots for each expert at simulated rank `source`; E numbers."""
        if self.far_capacity is None:
            return [self.capacity] * self.num_experts
        assert self.source_nodes is not None
        node = self.source_nodes[source]
        return [
            self.capacity if self.is_local(node, expert) else self.far_capacity for expert in range(self.num_experts)
        ]

    def node_of_expert(self, node: int, expert: int) -> int:
        """The node on which a rank of `node` finds `expert`, within its own expert-parallel group."""
        rank = node * self.layout.ranks_per_node
        return self.layout.node_of(self.layout.group_of("ep", rank)[self.placement.ep_index_of(expert)])

    def is_local(self, node: int, expert: int) -> bool:
        """Whether a rank of `node` finds `expert` on its own node."""
        return self.node_of_expert(node, expert) == node


@dataclass(frozen=True)
class SharedWeights:
    """Weights of the experts that every token passes through, one by one, or their gradients."""

    w1: np.ndarray  # (m,d,f) float
    b1: np.ndarray  # (m,f) float
    w2: np.ndarray  # (m,f,d) float
    b2: np.ndarray  # (m,d) float


@dataclass(frozen=True)
class LayerParameters:
    """Weights of all experts, and the router's own: `gate` where it is learned, `table` for the hash router."""

    w1: np.ndarray  # (E,d,f) float
    b1: np.ndarray  # (E,f) float
    w2: np.ndarray  # (E,f,d) float
    b2: np.ndarray  # (E,d) float
    gate: Optional[np.ndarray] = None  # (E,d) float; of smile (`LayerSpec.gate_rows`,d)
    table: Optional[np.ndarray] = None  # (G,V) int, with k above 1 (G,V,k); entries 0..n-1
    balance: Optional[np.ndarray] = None  # (E,) float; added to the score that an expert is picked by
    value_mean: Optional[np.ndarray] = None  # (E,) float; locmoe: subtracted from an expert's w_i x
    partners: Optional[np.ndarray] = None  # (E,n) bool; c2r: the group's experts that may follow a first one
    shared: Optional[SharedWeights] = None  # of experts beside those that the router picks; None: there are none


@dataclass(frozen=True)
class RankTokens:
    """The tokens of one simulated rank."""

    x: np.ndarray  # (T,d) float
    token_ids: np.ndarray  # (T,) int
    domain: np.ndarray  # (T,) int
    home: np.ndarray  # (T,) int; rank of `LayerSpec.layout`
    chance: Optional[np.ndarray] = None  # (T,) float in [0, 1): decides on gshard's second choices; None: all are taken
    # (T,n) float: eps_i of LocMoE's Eq. 2, of the locmoe router; None: 0, as in evaluation
    noise: Optional[np.ndarray] = None


@dataclass(frozen=True)
class LayerStats:
    """Counts over all ranks; fractions lie in [0, 1] and are 0 where there is nothing to count."""

    tokens_per_expert: np.ndarray  # (E,) int64; assignments before drops
    drop_fraction: float  # dropped / all assignments
    local_fraction: float  # kept assignments whose expert is on the node of the token's home / kept assignments
    load_max_over_mean: float  # of tokens_per_expert
    undecided_fraction: float  # locmoe: tokens with fewer than k values above 0 / all tokens
    # (Q,) int64; tokens whose experts are on 1, ... Q nodes, Q the smaller of k and the nodes; empty where Q is 1
    tokens_by_nodes: np.ndarray


@dataclass(frozen=True)
class LayerResult:
    """The layer's outputs; tuples hold one array per rank.

    The losses are taken over all ranks and already contain alpha and mu; a divergence loss is part of aux_loss.
    """

    outputs: tuple[np.ndarray, ...]  # (T,d) float64
    aux_loss: float
    locality_loss: float
    stats: LayerStats
    # (T,k) int64; global expert ids, best first, re-picked ones replaced; E: a choice not taken up
    expert: tuple[np.ndarray, ...]
    weight: tuple[np.ndarray, ...]  # (T,k) float64; factor on that expert's output, 1/k without scale_by_gate
    kept: tuple[np.ndarray, ...]  # (T,k) bool


@dataclass(frozen=True)
class LayerGradients:
    """Gradients of one objective; those of parameters are summed over ranks."""

    x: tuple[np.ndarray, ...]  # (T,d) float64 per rank
    w1: np.ndarray  # (E,d,f) float64
    b1: np.ndarray  # (E,f) float64
    w2: np.ndarray  # (E,f,d) float64
    b2: np.ndarray  # (E,d) float64
    gate: Optional[np.ndarray]  # as of `LayerParameters`, float64; None where no gate is learned
    shared: Optional[SharedWeights] = None  # float64; None where there are no shared experts


def check_inputs(spec: LayerSpec, parameters: LayerParameters, ranks: Sequence[RankTokens]) -> None:
    """Raise `InputError` for missing parameters and for ids out of range: NumPy would wrap negative ones silently.

    Args:
        spec, parameters: of the layer. ranks: its tokens, one entry a simulated rank.
    """
    experts, hidden = spec.num_experts, parameters.w1.shape[1]
    _require(parameters.w1.shape[0] == experts, "w1.shape", parameters.w1.shape, f"(E = {experts}, d, f)")
    if spec.learns_gate:
        found = None if parameters.gate is None else parameters.gate.shape
        _require(found == (spec.gate_rows, hidden), "gate.shape", found, f"(E, d) = {(spec.gate_rows, hidden)}")
    if spec.router == "c2r":
        found, expected = None if parameters.partners is None else parameters.partners.shape, spec.experts_per_group
        _require(found == (experts, expected), "partners.shape", found, f"(E, n) = {(experts, expected)}")
    if spec.router == "hash":
        found = None if parameters.table is None else parameters.table.shape[:1]
        _require(found == (spec.num_groups,), "table.shape[:1]", found, f"(G,) = ({spec.num_groups},)")
        choices = None if parameters.table is None else parameters.table.shape[2:] or (1,)
        _require(choices == (spec.top_k,), "table.shape[2:]", choices, f"(k,) = ({spec.top_k},)")
    for index, tokens in enumerate(ranks):
        _check_ids(f"ranks[{index}].domain", tokens.domain, len(spec.domain_groups))
        _check_ids(f"ranks[{index}].home", tokens.home, spec.layout.world_size)
        if parameters.table is not None and spec.router == "hash":
            _check_ids(f"ranks[{index}].token_ids", tokens.token_ids, parameters.table.shape[1])


def _check_ids(name: str, ids: np.ndarray, limit: int) -> None:
    for value in ids:
        _require(0 <= value < limit, name, int(value), f"ids 0..{limit - 1}")


def _require_choice(name: str, found: str, choices: tuple[str, ...]) -> None:
    _require(found in choices, name, found, f"one of {', '.join(choices)}")


def _require(condition: bool, name: str, found: Any, expected: str) -> None:
    if not condition:
        raise InputError(f"reference MoE layer: {name} is {found!r}, expected {expected}")
