"""A whole sparse feed-forward layer from a handful of sizes, for use in any network."""

from typing import Optional

from locmoe_ops.capacity.factor import capacity_by_factor
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.flat import FlatDispatcher
from locmoe_ops.experts import ExpertBank
from locmoe_ops.moe import MoEFeedForward
from locmoe_ops.router_registry import kind_of
from locmoe_ops.routers.base import Router, RoutingShape
from locmoe_ops.routers.context import RouterRequest, make_router
from locmoe_ops.routers.gates import DenseGate
from locmoe_ops.routing_cell import MultiLevelRouting
from locmoe_ops.topology import ExpertPlacement, Topology, local_experts_table


def build_moe(tokens: int, hidden_size: int, ffn_hidden_size: int, num_experts: int, router: str = "locmoe", top_k: int = 1,
              capacity_factor: float = 1.25, vocab_size: Optional[int] = None, activation: str = "gelu", seed: int = 1,
              collectives: Optional[Collectives] = None, tag: str = "moe") -> MoEFeedForward:
    """An initialised MoE layer with one expert group.

    Args:
        tokens: T, tokens of every call on this rank. hidden_size: d, which num_experts must divide for `locmoe`.
        router: name of any that is registered (`locmoe_ops.router_registry`), with its defaults; those that map token ids to experts
            need `vocab_size`.
        capacity_factor: slots per expert = ceil(factor * top_k * T / num_experts).
        collectives: of a job with several ranks; default: this process alone. tag: unique among the job's layers.

    Raises InputError where the sizes do not fit together or the router is unknown.
    """
    group = collectives or create_collectives("local", Topology(1, 1), 0)
    placement = ExpertPlacement(num_experts, 1, group.topology.expert)
    shape = RoutingShape(hidden_size, num_experts, 1, top_k)
    experts = ExpertBank(placement.local_experts(group.topology.ep_index(group.rank)), hidden_size, ffn_hidden_size, activation)
    experts.initialise(seed)
    kind = kind_of(router)
    chosen = make_router(RouterRequest(router, kind.options(), shape, group.topology, placement, group, seed=seed, vocab_size=vocab_size,
                                       tag=tag))
    _initialise(chosen, seed)
    capacity = capacity_by_factor(tokens, top_k, num_experts, capacity_factor)
    return MoEFeedForward(MultiLevelRouting((0,), chosen),
                          FlatDispatcher(group, placement, tokens, top_k, capacity, "weight" if kind.expert_choice else "position", tag),
                          experts,
                          local_experts_table(group.topology, placement))


def _initialise(router: Router, seed: int) -> None:
    for _, cell in router.cells_and_names():
        if isinstance(cell, DenseGate):
            cell.initialise(seed, 0.02)
