"""The declaration of LocMoE's router (arXiv 2401.13920), whose Cells are in `locmoe_ops.routers.gated`."""

import math
from dataclasses import dataclass, replace
from typing import Dict, Optional

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.random import SeededUniform
from locmoe_ops.router_registry import TERMS, RouterCost, RouterSizes, RouterSpec, check_blocks, dense_gate_cost
from locmoe_ops.routers.base import Router, RoutingShape, one_hot
from locmoe_ops.routers.context import RouterContext
from locmoe_ops.routers.gated import _SMALL, LocalisingRouter, LossWeights
from locmoe_ops.routers.gates import CodeGate, DenseGate, GrAPGate, draw_codes
from locmoe_ops.routers.selection_bias import SelectionBias
from locmoe_ops.topology import ExpertPlacement, Topology


@dataclass(frozen=True)
class LocMoEOptions:
    gate: str = key(
        "grap",
        "grouped average pooling (fixed weights, LocMoE Eq. 4) or a learned dense gate",
        choices=("grap", "dense"),
    )
    gate_input: str = key(
        "hidden",
        "hidden: the gate sees the layer's normed input, as in the paper; word: the token's normed word "
        "vector; code: a fixed random code of the token's id; codes lie nearest to experts in "
        "equal shares of their group's text, routes stay, as RRE's do, and the losses have nothing to bend "
        "(both ours)",
        choices=("hidden", "word", "code"),
    )
    blocks: str = key(
        "contiguous",
        "features that a GrAP gate averages: contiguous blocks, as in the paper; by_layer: blocks of a random "
        "order of features, another one in each layer (ours)",
        choices=("contiguous", "by_layer"),
    )
    aux_loss_weight: float = key(0.01, "alpha of L_aux (LocMoE Eq. 5)", minimum=0.0)
    locality_loss_weight: float = key(0.01, "mu of L_loc (LocMoE Eq. 6); the paper does not give a value", minimum=0.0)
    locality_smoothing: float = key(
        0.1,
        "share of the localised distribution D_l spread over all experts, so that KL stays finite",
        above=0.0,
        maximum=1.0,
    )
    ties: str = key(
        "first",
        "what decides tokens whose gate values ReLU makes 0 (docs/routers.md): first: the group's first expert; "
        "unrectified: the values before ReLU (ours); noise: noise on the values before ReLU in training, eps_i of "
        "LocMoE Eq. 2",
        choices=("first", "unrectified", "noise"),
    )
    noise_scale: Optional[float] = key(
        None,
        "ties noise: the noise is uniform between minus this and this (our choice, the paper gives "
        "none); null: sqrt(n / d) for n experts of a group and hidden size d, the standard deviation "
        "of a block's mean of standardised features",
        above=0.0,
    )


def _check(own: LocMoEOptions, sizes: RouterSizes) -> None:
    if own.gate_input == "code" and own.gate == "dense":
        raise InputError(
            "moe.router.locmoe.gate is dense with moe.router.locmoe.gate_input code, whose gate is fixed; expected grap"
        )
    without_blocks = "gate dense" if own.gate == "dense" else "gate_input code" if own.gate_input == "code" else ""
    if without_blocks and own.blocks != "contiguous":
        raise InputError(
            f"moe.router.locmoe.blocks is {own.blocks} with moe.router.locmoe.{without_blocks}, which has no blocks; "
            "expected contiguous"
        )
    if own.noise_scale is not None and own.ties != "noise":
        raise InputError(
            f"moe.router.locmoe.noise_scale is {own.noise_scale} with moe.router.locmoe.ties {own.ties}, which adds no noise; "
            "expected null"
        )
    if own.ties != "first" and own.gate_input == "code":
        raise InputError(
            f"moe.router.locmoe.ties is {own.ties} with moe.router.locmoe.gate_input code, whose largest value is always "
            "above 0; expected first"
        )
    if own.gate == "grap":
        check_blocks("locmoe.gate grap", sizes)


def _cost(own: LocMoEOptions, sizes: RouterSizes) -> RouterCost:
    if own.gate == "dense":
        return replace(dense_gate_cost(own, sizes), statistics="node")
    return RouterCost(
        products=0 if own.gate_input == "code" else sizes.per_group * sizes.hidden_size, statistics="node"
    )


ROUTER = RouterSpec(
    LocMoEOptions,
    terms=TERMS,
    second_experts=True,
    gate_weights=True,
    counts_undecided=True,
    localises=True,
    check=_check,
    cost=_cost,
)


def build(request: RouterContext) -> Router:
    own, shape, seed = request.own, request.shape, (request.seed, request.layer)
    order = np.random.default_rng(seed).permutation(shape.hidden_size) if own.blocks == "by_layer" else None
    codes = None
    if own.gate_input == "code":
        winners = request.hash_tables("uniform" if request.token_counts is None else "frequency")
        codes = draw_codes(winners, shape.per_group, shape.hidden_size, seed)
    scale = math.sqrt(shape.per_group / shape.hidden_size) if own.noise_scale is None else own.noise_scale
    return LocMoERouter(
        *request.placed_surroundings,
        own.gate,
        request.statistics,
        own.aux_loss_weight,
        own.locality_loss_weight,
        own.locality_smoothing,
        request.preference,
        own.gate_input,
        order,
        codes,
        Ties(own.ties, scale, request.salt),
    )


@dataclass(frozen=True)
class Ties:
    """What LocMoE's router does with undecided tokens: those with fewer than k gate values above 0 (k is `top_k`). Eq.
    2's ReLU makes their other values 0, so that at least one of their choices is a tie.

    `first`: the tie goes to the expert of lowest index. A token without any value above 0 has the weight 1/n, and
    neither its output nor a loss has a gradient with respect to its values. `unrectified` (ours): an undecided token is
    routed as if Eq. 2 had no ReLU. Choice, weight and losses come from the softmax of its values as they are, and
    gradients flow through all of them.
    `noise`: in training eps_i is added to value i before the ReLU, as in Eq. 2, and ties that remain go to the lowest
    index. The paper does not give the distribution of eps_i. Here it is uniform in [-noise_scale, noise_scale), our
    choice. It is a function of the token's seed, the layer and i, so it is the same at any parallel degree. In
    evaluation it is 0.

    Attributes:
        rule: `first`, `unrectified` or `noise`. noise_scale: for `noise`. salt: tells the noise of layers apart.
    """

    rule: str = "first"
    noise_scale: float = 0.0
    salt: int = 0


class LocMoERouter(LocalisingRouter):
    """LocMoE's router (arXiv 2401.13920, Eq. 1-7): softmax of ReLU'd gate values, load-balancing and locality losses.

    Args:
        ties: what decides where the ReLU leaves several values equal to 0.
        gate: `grap`, fixed orthogonal weights (Eq. 4), or `dense`, learned ones.
        gate_input: `hidden`, the layer's input as in the paper; `word`: the token's word vector <float>[T, d], which
            `tokens` then holds as `word`, brought to mean 0 and variance 1 (ours); `code`: a fixed code of the token's
            id (ours, see `CodeGate`).
        codes: <float32>[G, V, n], for `code`.
        order: of the features in a GrAP gate's blocks, see `GrAPGate` (ours).
        locality_loss_weight: mu. locality_smoothing: see `losses.locality_loss`. The others: see `LocalisingRouter`.
    """

    def __init__(
        self,
        shape: RoutingShape,
        layout: Topology,
        placement: ExpertPlacement,
        collectives: Collectives,
        tag: str,
        gate: str = "grap",
        statistics: str = "global",
        aux_loss_weight: float = 0.01,
        locality_loss_weight: float = 0.01,
        locality_smoothing: float = 0.1,
        preference: Optional[SelectionBias] = None,
        gate_input: str = "hidden",
        order: Optional[np.ndarray] = None,
        codes: Optional[np.ndarray] = None,
        ties: Ties = Ties(),
    ) -> None:
        sizes = (shape.num_experts, shape.num_groups, shape.hidden_size)
        fixed = GrAPGate(*sizes, order) if codes is None else CodeGate(codes)
        super().__init__(
            shape,
            fixed if gate == "grap" else DenseGate(*sizes),
            layout,
            placement,
            collectives,
            tag,
            statistics,
            LossWeights(aux_loss_weight, locality_loss_weight, locality_smoothing),
            preference,
        )
        self.by_word, self.by_code = gate_input == "word", gate_input == "code"
        self.counts_undecided = True
        self.unrectified, self.noisy, self.noise_scale = (
            ties.rule == "unrectified",
            ties.rule == "noise",
            ties.noise_scale,
        )
        self.uniform = SeededUniform(shape.per_group, ties.salt) if self.noisy else nn.Identity()

    def values(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        values = self.noiseless_values(x, tokens)
        if not self.noisy or not self.training:
            return values
        return values + self.noise_scale * (2.0 * self.uniform(tokens["seed"]) - 1.0)  # eps_i of Eq. 2

    def noiseless_values(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        """w_i x of Eq. 2: <float32>[T, n] <- <float>[T, d]"""
        if self.by_code:
            return self.gate(tokens["ids"], tokens["group"])
        return self.gate(self.prepare(x, tokens), one_hot(tokens["group"], self.num_groups))

    def prepare(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        if not self.by_word:
            return ops.cast(x, dtype.float32)
        word = ops.cast(tokens["word"], dtype.float32)
        word = word - word.mean(-1, keep_dims=True)
        return word * ops.rsqrt((word * word).mean(-1, keep_dims=True) + _SMALL)

    def seen(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        if self.by_code:
            return self.noiseless_values(x, tokens)
        return self.prepare(x, tokens) if self.by_word else x

    def undecided(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tensor:
        # The same product as in `choose`, which a compiled graph computes once.
        return ops.cast(self._undecided(ops.stop_gradient(self.values(x, tokens))), dtype.float32).reshape(-1)

    def score(self, values: Tensor) -> Tensor:
        rectified = ops.relu(values)  # Eq. 2
        return ops.select(self._undecided(values), values, rectified) if self.unrectified else rectified

    def _undecided(self, values: Tensor) -> Tensor:
        """bool[T, 1] <- <float32>[T, n]"""
        return ops.cast(values > 0.0, dtype.float32).sum(-1, keepdims=True) < self.top_k
