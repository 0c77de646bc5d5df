"""Sparse layers and the batches they are fed: what the test process and the ranks of its job must agree on.

Shape legend: R logical ranks, T tokens a logical rank, d hidden size, f inner width, E experts, G groups, k choices.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Optional

import numpy as np

from locmoe_ops.reference.spec import LayerParameters, LayerSpec, RankTokens, SharedWeights
from locmoe_ops.reference.topk import TopKRules
from locmoe_ops.topology import ExpertPlacement, Topology

RANKS = 4
TOKENS = 13  # odd, so that no kernel sees whole blocks of rows
HIDDEN = 24
INNER = 10
VOCABULARY = 17
AMPLE = RANKS * TOKENS  # slots that no token can miss, even with all tokens on one rank
DRAWS = ("scattered", "crowded", "losses")


@dataclass(frozen=True)
class Case:
    """One compiled layer. `capacity` slots: about T * k / E are needed for an even load, so 2 overflows."""

    router: str
    gate: str = "grap"
    groups: int = 1
    top_k: int = 1
    capacity: int = 2
    priority: str = "position"
    statistics: str = "global"
    expert_parallel: int = RANKS
    ranks_per_node: int = 2
    placement: str = "interleaved"
    scale_by_gate: bool = True
    activation: str = "gelu"
    local_term: str = "none"
    local_strength: float = 0.0
    max_remote_fraction: float = 1.0
    balanced: bool = False
    overflow: str = "drop"
    ties: str = "first"
    normalise: str = "none"
    value_scale: float = 1.0
    rectify: bool = True
    centred: bool = False
    divergence: float = 0.0  # with it, three domains share the experts of one group
    hash_score: str = "none"
    hash_renormalise: bool = True
    hash_scale: float = 1.0
    noisy: bool = False  # noise on the gate's values, whatever `ties` says
    half: bool = False  # experts compute in float16, and tokens travel in it
    num_experts: int = 8
    rules: TopKRules = TopKRules()  # of topk, node_limited and moge
    tied: bool = False  # experts in pairs of equal scores: small whole numbers, for which products are exact
    shared: int = 0  # experts that every token passes through
    far_capacity: Optional[int] = None  # hierarchical dispatch, with `capacity` slots for experts of the own node
    copies: Optional[int] = None  # then a token travels to another node once, and so many do
    expert_choice: bool = False  # etr: experts choose
    library_cap: bool = False  # faster_moe: the fastmoe library's rule
    num_nodes: int = 1  # smile
    num_partners: int = 0  # c2r: of each expert, on one of two devices; 0: all others of the group
    compiled: bool = True  # by four ranks; one process compiles all. Those that are not exchange as another that is

    @property
    def experts(self) -> int:
        return 12 if self.groups == 3 else self.num_experts

    @property
    def domain_groups(self) -> tuple[int, ...]:
        # Domain ids run against group ids, so that the two cannot be confused.
        return (0, 0, 0) if self.divergence else tuple(reversed(range(self.groups)))

    @property
    def layout(self) -> Topology:
        return Topology(RANKS, self.ranks_per_node, self.expert_parallel)

    def placed(self, expert_parallel: int) -> ExpertPlacement:
        return ExpertPlacement(self.experts, self.groups, expert_parallel, self.placement)

    @property
    def spec(self) -> LayerSpec:
        return LayerSpec(
            layout=self.layout,
            placement=self.placed(self.expert_parallel),
            capacity=self.capacity,
            router=self.router,
            gate=self.gate,
            domain_groups=self.domain_groups,
            top_k=self.top_k,
            scale_by_gate=self.scale_by_gate,
            activation=self.activation,
            drop_priority=self.priority,
            statistics=self.statistics,
            alpha=0.3,
            mu=0.2,
            local_term=self.local_term,
            local_strength=self.local_strength,
            max_remote_fraction=self.max_remote_fraction,
            bandwidth_ratio=3.0,
            temperature=0.2,
            overflow=self.overflow,
            far_capacity=self.far_capacity,
            copies=self.copies,
            ties=self.ties,
            normalise=self.normalise,
            value_scale=self.value_scale,
            rectify=self.rectify,
            divergence=self.divergence,
            topk_rules=self.rules,
            hash_score=self.hash_score,
            hash_renormalise=self.hash_renormalise,
            hash_scale=self.hash_scale,
            expert_choice=self.expert_choice,
            library_cap=self.library_cap,
            num_nodes=self.num_nodes,
            beta=0.4,
            source_nodes=tuple(map(self.layout.node_of, range(RANKS))),
        )


CASES = {
    "hash, top 2, by a gate, 3 groups": Case("hash", groups=3, top_k=2, hash_score="sqrt_softplus", hash_scale=1.5),
    "hash, top 3, by a gate, by weight, 2 replicas": Case(
        "hash", top_k=3, capacity=4, priority="weight", expert_parallel=2, activation="relu", hash_score="softmax"
    ),
    "switch, nothing dropped": Case("switch", capacity=AMPLE, compiled=False),
    "switch, top 2, 3 groups, by weight": Case(
        "switch", groups=3, top_k=2, priority="weight", statistics="rank", placement="node_grouped"
    ),
    "switch, top 2, unscaled, 2 replicas": Case(
        "switch",
        top_k=2,
        capacity=3,
        expert_parallel=2,
        scale_by_gate=False,
        statistics="node",
        activation="fast_gelu",
        compiled=False,
    ),
    "grap, 3 groups, by weight": Case("locmoe", groups=3, priority="weight", statistics="rank", compiled=False),
    "grap, top 2, 2 replicas over 4 nodes": Case(
        "locmoe", top_k=2, capacity=3, statistics="node", expert_parallel=2, ranks_per_node=1
    ),
    "grap, 3 groups, nothing dropped": Case("locmoe", groups=3, capacity=AMPLE, statistics="node", compiled=False),
    "dense, top 2, 3 groups, by weight": Case(
        "locmoe", gate="dense", groups=3, top_k=2, priority="weight", placement="node_grouped"
    ),
    "dense, top 2, 2 replicas, nothing dropped": Case(
        "locmoe",
        gate="dense",
        top_k=2,
        capacity=AMPLE,
        priority="weight",
        statistics="rank",
        expert_parallel=2,
        activation="gelu_tanh",
        shared=1,
        compiled=False,
    ),
    "switch, top 8 of 16, two shared": Case("switch", num_experts=16, top_k=8, capacity=5, shared=2, activation="relu"),
    "switch, top 2, two tiers, re-picked by weight": Case(
        "switch", top_k=2, capacity=4, far_capacity=1, priority="weight", overflow="repick"
    ),
    "switch, top 4, one copy a node": Case("switch", top_k=4, capacity=6, far_capacity=5, copies=10),
    "experts choose, etr, top 2, 3 groups, by weight": Case(
        "etr", groups=3, top_k=2, priority="weight", expert_choice=True, statistics="rank"
    ),
    "library cap, 3 groups, 2 replicas": Case(
        "faster_moe", groups=3, top_k=2, max_remote_fraction=0.4, library_cap=True, expert_parallel=2, ranks_per_node=1
    ),
    "smile, top 2, 3 groups": Case("smile", groups=3, top_k=2, num_nodes=2, statistics="node"),
    "c2r, top 3, nothing dropped, 2 replicas": Case(
        "c2r", top_k=3, num_partners=2, capacity=AMPLE, expert_parallel=2, statistics="rank"
    ),
    "half, switch, top 2, 3 groups, by weight": Case(
        "switch", groups=3, top_k=2, priority="weight", half=True, compiled=False
    ),
    "half, dense, two tiers": Case("locmoe", gate="dense", capacity=4, far_capacity=1, half=True),
    "topk, 8 of 64, all losses, 2 replicas": Case(
        "topk",
        num_experts=64,
        top_k=8,
        expert_parallel=2,
        statistics="expert_parallel",
        rules=TopKRules("sigmoid", True, 2.5, sequence_loss=0.4, z_loss=0.05, sequence_length=TOKENS),
    ),
    "node limited, 2 of 4 nodes, nothing dropped": Case(
        "node_limited",
        num_experts=16,
        top_k=3,
        capacity=AMPLE,
        ranks_per_node=1,
        statistics="node",
        rules=TopKRules("sqrt_softplus", True, max_nodes=2, z_loss=0.02),
    ),
    "grouped, one of each device, 2 groups": Case("moge", num_experts=16, groups=2, top_k=4, capacity=3),
}

# The same routers by every key, uncompiled: top 1, 2 and 8, ties, biases. In one process that stands for four ranks.
_LOSSES = {"sequence_loss": 0.4, "z_loss": 0.05, "sequence_length": TOKENS}
TOPK_CASES = {
    "softmax, top 1": Case("topk"),
    "softmax, top 2, 3 groups, normalised, all losses": Case(
        "topk",
        groups=3,
        top_k=2,
        priority="weight",
        statistics="node",
        rules=TopKRules(normalise_weights=True, **_LOSSES),
    ),
    "softmax, 8 of 64, local margin": Case(
        "topk", num_experts=64, top_k=8, local_term="margin", local_strength=0.6, rules=TopKRules(weight_scale=3.0)
    ),
    "sigmoid, top 1, scaled": Case("topk", capacity=AMPLE, rules=TopKRules("sigmoid", weight_scale=0.5, **_LOSSES)),
    "sigmoid, top 2, 3 groups, balanced, sequence loss without the bias": Case(
        "topk", groups=3, top_k=2, balanced=True, statistics="rank", rules=TopKRules("sigmoid", True, **_LOSSES)
    ),
    "sigmoid, top 3, tied": Case("topk", top_k=3, tied=True, rules=TopKRules("sigmoid", **_LOSSES)),
    "softmax, top 1, tied, by weight": Case("topk", tied=True, priority="weight"),
    "square root, 8 of 64, balanced, local bias": Case(
        "topk",
        num_experts=64,
        top_k=8,
        capacity=AMPLE,
        balanced=True,
        local_term="bias",
        local_strength=0.2,
        statistics="expert_parallel",
        expert_parallel=2,
        rules=TopKRules("sqrt_softplus", True, 1.5, **_LOSSES),
    ),
    "square root, top 2, unscaled outputs": Case(
        "topk", top_k=2, scale_by_gate=False, rules=TopKRules("sqrt_softplus", z_loss=0.1)
    ),
    "node limited, top 1": Case("node_limited", rules=TopKRules(max_nodes=1)),
    "node limited, top 2 on one of 2 nodes, 3 groups, balanced": Case(
        "node_limited", groups=3, top_k=2, balanced=True, rules=TopKRules("sigmoid", True, max_nodes=1)
    ),
    "node limited, 8 of 64 on 2 of 4 nodes, all losses": Case(
        "node_limited",
        num_experts=64,
        top_k=8,
        ranks_per_node=1,
        rules=TopKRules("sigmoid", True, 2.5, max_nodes=2, **_LOSSES),
    ),
    "node limited, top 3 on 1 of 4 nodes, tied, local bias": Case(
        "node_limited",
        num_experts=16,
        top_k=3,
        ranks_per_node=1,
        capacity=AMPLE,
        tied=True,
        local_term="bias",
        local_strength=0.25,
        rules=TopKRules("sigmoid", True, max_nodes=1),
    ),
    "grouped, top 1 of one part": Case("moge", rules=TopKRules(device_groups=1)),
    "grouped, top 2 by devices, 2 replicas, 3 groups": Case(
        "moge", groups=3, top_k=2, expert_parallel=2, rules=TopKRules("sigmoid", True)
    ),
    "grouped, 8 of 64, one of each eighth, balanced": Case(
        "moge", num_experts=64, top_k=8, balanced=True, rules=TopKRules(weight_scale=2.0, device_groups=8, **_LOSSES)
    ),
    "grouped, 4 of 16, one of each device, tied": Case(
        "moge", num_experts=16, top_k=4, tied=True, placement="node_grouped", rules=TopKRules("sqrt_softplus")
    ),
}

# Routers whose choices need no exchange of their own: what is summed over ranks is summed as in the cases above.
ROUTER_CASES = {
    "hash, 3 groups": Case("hash", groups=3),
    "hash, by weight, 2 replicas": Case("hash", priority="weight", expert_parallel=2, activation="relu"),
    "hash, top 2, equal weights": Case("hash", top_k=2),
    "hash, top 8 of 8, sigmoid": Case("hash", top_k=8, capacity=AMPLE, hash_score="sigmoid", hash_scale=2.5),
    "hash, top 1, sigmoid, 3 groups, by weight": Case(
        "hash", groups=3, priority="weight", hash_score="sigmoid", hash_renormalise=False
    ),
    "gshard, 3 groups": Case("gshard", groups=3, top_k=2),
    "gshard, by weight, nothing dropped": Case("gshard", top_k=2, capacity=AMPLE, priority="weight", statistics="node"),
    "capped, nothing dropped": Case("faster_moe", capacity=AMPLE, max_remote_fraction=0.3, statistics="rank"),
    "capped, top 2, 3 groups over 4 nodes": Case(
        "faster_moe", groups=3, top_k=2, ranks_per_node=1, max_remote_fraction=0.5
    ),
    "topology, by rank": Case("ta_moe", groups=3, capacity=AMPLE, statistics="rank"),
    "topology, top 2, by node": Case("ta_moe", top_k=2),
    "resonance, 3 groups, by weight": Case("etr", groups=3, priority="weight"),
    "bias, switch, nothing dropped": Case("switch", capacity=AMPLE, local_term="bias", local_strength=0.25),
    "balanced, switch, 3 groups": Case("switch", groups=3, balanced=True),
    "balanced margin, grap, nothing dropped": Case(
        "locmoe", capacity=AMPLE, local_term="margin", local_strength=1.0, balanced=True
    ),
    "margin, grap, top 2, 3 groups": Case("locmoe", groups=3, top_k=2, local_term="margin", local_strength=0.3),
    "ties first, grap, 3 groups": Case("locmoe", groups=3),
    "ties unrectified, grap, 3 groups, by weight": Case(
        "locmoe", groups=3, priority="weight", ties="unrectified", statistics="rank"
    ),
    "ties unrectified, dense, top 2, 3 groups, nothing dropped": Case(
        "locmoe", gate="dense", groups=3, top_k=2, capacity=AMPLE, ties="unrectified"
    ),
    "ties noise, grap, top 2, 3 groups, nothing dropped": Case(
        "locmoe", groups=3, top_k=2, capacity=AMPLE, ties="noise", noisy=True, statistics="node"
    ),
    "ties noise, dense, 3 groups": Case("locmoe", gate="dense", groups=3, ties="noise", noisy=True),
    "normalised, grap, 3 groups, nothing dropped": Case("locmoe", groups=3, capacity=AMPLE, normalise="token"),
    "normalised, sharp, dense, top 2, unrectified ties, noise": Case(
        "locmoe",
        gate="dense",
        groups=3,
        top_k=2,
        normalise="token",
        value_scale=4.0,
        ties="unrectified",
        noisy=True,
        statistics="node",
    ),
    "centred, grap, 3 groups, nothing dropped": Case("locmoe", groups=3, capacity=AMPLE, centred=True),
    "centred, normalised, dense, top 2": Case("locmoe", gate="dense", top_k=2, centred=True, normalise="token"),
    "no ReLU, sharp, grap, top 2, by weight": Case(
        "locmoe", top_k=2, priority="weight", rectify=False, value_scale=3.0
    ),
    "divergence, grap, nothing dropped": Case("locmoe", capacity=AMPLE, divergence=0.7),
    "divergence, dense, top 2, by node": Case("locmoe", gate="dense", top_k=2, divergence=0.7, statistics="node"),
    "no ReLU, noise, normalised, grap, 3 groups, nothing dropped": Case(
        "locmoe", groups=3, capacity=AMPLE, rectify=False, normalise="token", noisy=True, statistics="rank"
    ),
}
# A loss's means over expert-parallel groups, which are smaller or larger than nodes.
STATISTICS_CASES = {
    "locmoe, groups of a node": Case("locmoe", gate="dense", capacity=AMPLE, ranks_per_node=4, expert_parallel=2),
    "locmoe, groups of 2 nodes, 3 expert groups": Case(
        "locmoe", groups=3, gate="dense", ranks_per_node=1, expert_parallel=2
    ),
    "ta_moe, groups of a node": Case("ta_moe", capacity=AMPLE, ranks_per_node=4, expert_parallel=2),
    "ta_moe, one group of 2 nodes": Case("ta_moe", top_k=2),
    "switch, groups of 2 nodes": Case("switch", capacity=AMPLE, ranks_per_node=1, expert_parallel=2),
}
STATISTICS_CASES = {name: replace(case, statistics="expert_parallel") for name, case in STATISTICS_CASES.items()}


# Rarer cases, which run in PyNative mode: nothing is compiled for them.
PYNATIVE_CASES = {
    "resonance, experts choose": Case("etr", priority="weight", expert_choice=True, statistics="node"),
    "resonance, experts choose all 8": Case(
        "etr", top_k=8, priority="weight", capacity=AMPLE, expert_choice=True, statistics="rank"
    ),
    "capped as the library does": Case(
        "faster_moe", top_k=2, capacity=AMPLE, max_remote_fraction=0.3, library_cap=True, statistics="node"
    ),
    "the library's rule without a cap": Case("faster_moe", top_k=2, capacity=4, library_cap=True),
    "two levels, nothing dropped": Case("smile", num_nodes=4, capacity=AMPLE),
    "two levels, top 2 of 4, by weight": Case(
        "smile", top_k=2, num_nodes=2, priority="weight", overflow="repick", statistics="rank"
    ),
    "two levels, all of 8": Case("smile", top_k=8, capacity=8, statistics="node"),
    "collaboration, top 1": Case("c2r", num_partners=1, statistics="node"),
    "collaboration, 3 groups, biases": Case(
        "c2r", groups=3, top_k=2, num_partners=1, local_term="bias", local_strength=0.25, balanced=True
    ),
    "collaboration, margin": Case("c2r", top_k=2, num_partners=2, local_term="margin", local_strength=0.8),
    "collaboration, all of 8": Case("c2r", top_k=8, capacity=8),
}


def partners_of(case: Case) -> np.ndarray:
    """bool (E, n): who may follow each expert, some of the other experts of its half of the group, or all others."""
    size = case.experts // case.groups
    table = np.zeros((case.experts, size), bool)
    rng = np.random.default_rng(5)
    for expert in range(case.experts):
        own = expert % size
        others = [
            i for i in range(size) if i != own and (case.num_partners == 0 or i // (size // 2) == own // (size // 2))
        ]
        table[expert, rng.permutation(others)[: case.num_partners or None]] = True
    return table


def parameters_of(case: Case) -> LayerParameters:
    rng = np.random.default_rng(7)
    experts, per_group = case.experts, case.experts // case.groups

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def gate() -> np.ndarray:
        drawn = normal(case.spec.gate_rows, HIDDEN, scale=0.2)
        if case.tied:
            drawn = np.round(8.0 * drawn) / 8.0
            drawn[1::2] = drawn[::2]
        return drawn

    def table() -> np.ndarray:
        if case.router != "hash" or case.top_k == 1:
            return rng.integers(0, per_group, (case.groups, VOCABULARY)).astype(np.int32)
        shuffled = rng.random((case.groups, VOCABULARY, per_group)).argsort(-1)  # an id's experts are different ones
        return shuffled[..., : case.top_k].astype(np.int32)

    def shared() -> SharedWeights:
        count = case.shared
        return SharedWeights(
            w1=normal(count, HIDDEN, INNER, scale=0.3),
            b1=normal(count, INNER, scale=0.5),
            w2=normal(count, INNER, HIDDEN, scale=0.3),
            b2=normal(count, HIDDEN, scale=0.5),
        )

    return LayerParameters(
        w1=normal(experts, HIDDEN, INNER, scale=0.3),
        b1=normal(experts, INNER, scale=0.5),
        w2=normal(experts, INNER, HIDDEN, scale=0.3),
        b2=normal(experts, HIDDEN, scale=0.5),
        gate=gate(),
        table=table(),
        balance=normal(experts, scale=0.1) if case.balanced else None,
        value_mean=normal(experts, scale=0.5) if case.centred else None,
        partners=partners_of(case) if case.router == "c2r" else None,
        shared=shared() if case.shared else None,
    )


def batch_of(case: Case, draw: str) -> tuple[list[RankTokens], list[np.ndarray]]:
    """Tokens and output gradients (T, d) of every logical rank.

    scattered: tokens at random, each at home on its rank.
    crowded: one domain only, so that whole groups stay empty; more equal tokens than an expert has slots, between
        others.
    losses: as scattered, with homes at random and no output gradient: what is left comes from the losses alone.
    """
    rng = np.random.default_rng(DRAWS.index(draw))
    ranks, gradients = [], []
    for rank in range(RANKS):
        x = (2.0 * rng.standard_normal((TOKENS, HIDDEN))).astype(np.float32)
        x = np.round(x) if case.tied else x
        ids, domain = rng.integers(0, VOCABULARY, TOKENS), rng.integers(0, len(case.domain_groups), TOKENS)
        home = np.full(TOKENS, rank) if draw == "scattered" else rng.integers(0, RANKS, TOKENS)
        gradient = rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32) * (draw != "losses")
        if draw == "crowded":
            x[3:11], ids[3:11], domain[:] = x[3], ids[3], 0
        ranks.append(RankTokens(x, ids.astype(np.int32), domain.astype(np.int32), home.astype(np.int32)))
        gradients.append(gradient)
    return ranks, gradients


def on_one_rank(ranks: list[RankTokens], gradients: list[np.ndarray]) -> tuple[list[RankTokens], list[np.ndarray]]:
    """The same batch as the tokens of a single process."""
    names = [field.name for field in fields(RankTokens) if getattr(ranks[0], field.name) is not None]
    together = RankTokens(*(np.concatenate([getattr(tokens, name) for tokens in ranks]) for name in names))
    return [together], [np.concatenate(gradients)]
