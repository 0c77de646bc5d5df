"""The declaration of LocMoE's router (arXiv 2401.13920), whose Cells are in `locmoe_ops.routers.gated`."""

import math
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import TERMS, RouterCost, RouterKind, RouterSizes, check_blocks, dense_gate_cost
from locmoe_ops.routers.base import Router
from locmoe_ops.routers.context import RouterRequest
from locmoe_ops.routers.gated import LocMoERouter, Ties
from locmoe_ops.routers.gates import draw_codes


@dataclass(frozen=True)
class LocMoEOptions:
    gate: str = key("grap", "grouped average pooling (fixed weights, LocMoE Eq. 4) or a learned dense gate",
                    choices=("grap", "dense"))
    gate_input: str = key("hidden", "hidden: the gate sees the layer's normed input, as in the paper; word: the token's normed word "
                                    "vector; code: a fixed random code of the token's id; codes lie nearest to experts in "
                                    "equal shares of their group's text, routes stay, as RRE's do, and the losses have nothing to bend "
                                    "(both ours)", choices=("hidden", "word", "code"))
    blocks: str = key("contiguous", "features that a GrAP gate averages: contiguous blocks, as in the paper; by_layer: blocks of a random "
                                    "order of features, another one in each layer (ours)", choices=("contiguous", "by_layer"))
    aux_loss_weight: float = key(0.01, "alpha of L_aux (LocMoE Eq. 5)", minimum=0.0)
    locality_loss_weight: float = key(0.01, "mu of L_loc (LocMoE Eq. 6); the paper does not give a value", minimum=0.0)
    locality_smoothing: float = key(0.1, "share of the localised distribution D_l spread over all experts, so that KL stays finite",
                                    above=0.0, maximum=1.0)
    ties: str = key("first", "what decides tokens whose gate values ReLU makes 0 (docs/routers.md): first: the group's first expert; "
                             "unrectified: the values before ReLU (ours); noise: noise on the values before ReLU in training, eps_i of "
                             "LocMoE Eq. 2", choices=("first", "unrectified", "noise"))
    noise_scale: Optional[float] = key(None, "ties noise: the noise is uniform between minus this and this (our choice, the paper gives "
                                             "none); null: sqrt(n / d) for n experts of a group and hidden size d, the standard deviation "
                                             "of a block's mean of standardised features", above=0.0)


def _check(own: LocMoEOptions, sizes: RouterSizes) -> None:
    if own.gate_input == "code" and own.gate == "dense":
        raise InputError("moe.router.locmoe.gate is dense with moe.router.locmoe.gate_input code, whose gate is fixed; expected grap")
    without_blocks = "gate dense" if own.gate == "dense" else "gate_input code" if own.gate_input == "code" else ""
    if without_blocks and own.blocks != "contiguous":
        raise InputError(f"moe.router.locmoe.blocks is {own.blocks} with moe.router.locmoe.{without_blocks}, which has no blocks; "
                         "expected contiguous")
    if own.noise_scale is not None and own.ties != "noise":
        raise InputError(f"moe.router.locmoe.noise_scale is {own.noise_scale} with moe.router.locmoe.ties {own.ties}, which adds no noise; "
                         "expected null")
    if own.ties != "first" and own.gate_input == "code":
        raise InputError(f"moe.router.locmoe.ties is {own.ties} with moe.router.locmoe.gate_input code, whose largest value is always "
                         "above 0; expected first")
    if own.gate == "grap":
        check_blocks("locmoe.gate grap", sizes)


def _cost(own: LocMoEOptions, sizes: RouterSizes) -> RouterCost:
    if own.gate == "dense":
        return replace(dense_gate_cost(own, sizes), statistics="node")
    return RouterCost(products=0 if own.gate_input == "code" else sizes.per_group * sizes.hidden_size, statistics="node")


ROUTER = RouterKind(LocMoEOptions, terms=TERMS, second_experts=True, gate_weights=True, counts_undecided=True, localises=True,
                    check=_check, cost=_cost)


def build(request: RouterRequest) -> Router:
    own, shape, seed = request.own, request.shape, (request.seed, request.layer)
    order = np.random.default_rng(seed).permutation(shape.hidden_size) if own.blocks == "by_layer" else None
    codes = None
    if own.gate_input == "code":
        winners = request.hash_tables("uniform" if request.token_counts is None else "frequency")
        codes = draw_codes(winners, shape.per_group, shape.hidden_size, seed)
    scale = math.sqrt(shape.per_group / shape.hidden_size) if own.noise_scale is None else own.noise_scale
    return LocMoERouter(*request.placed_surroundings, own.gate, request.statistics, own.aux_loss_weight, own.locality_loss_weight,
                        own.locality_smoothing, request.preference, own.gate_input, order, codes,
                        Ties(own.ties, scale, request.salt))
