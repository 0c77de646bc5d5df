"""What hierarchical dispatch declares: the slots of its two tiers and what it exchanges. The Cells are
`locmoe_ops.dispatch.hierarchical`.

Shape legend: V nodes of the expert-parallel group, R of its ranks on each, E experts, L = E / (V * R) experts a rank, d
hidden size. Each rank sends an expert of its own node up to C_in tokens and any other up to C_out; A = C_in - C_out, a
is A or half of it, M_in = R * L * A and M_out = E * C_out slots of the two parts of the send buffer.
"""

from typing import List

from locmoe_ops.dispatch.geometry import (
    DispatchExchange,
    DispatchSetup,
    LayerSlots,
    share_of_slots,
    there_and_back,
)
from locmoe_ops.dispatch.registry import SLOT_KEYS, DispatcherSpec


def chunks_of(setup: DispatchSetup, inter: int) -> int:
    """Parts that the intra-node tier is cut in, `inter` being C_out: a tier alone has nothing to overlap with."""
    return setup.options.chunks if inter else 1


def hierarchical_slots(setup: DispatchSetup) -> LayerSlots:
    """C_out and A. A is rounded up to a multiple of the chunks; if C_in < C_out, it is 0. Group-wise, C_out is a
    multiple of the tensor-parallel ranks, A of these times the chunks, and what is returned is a share's.
    """
    wanted_intra, wanted_inter = setup.capacities.tiers
    shares, experts, ranks = setup.shares, setup.placement.num_experts, setup.placement.ep
    inter = share_of_slots(wanted_inter, shares)
    chunks = chunks_of(setup, inter)
    intra = share_of_slots(max(wanted_intra - inter * shares, 0), shares, chunks)
    calls = (setup.neighbours * intra // chunks,) * chunks if intra else ()
    calls += (ranks * inter,) if inter else ()
    return LayerSlots(inter, intra, calls, experts // setup.nodes * intra + experts * inter, shares)


def hierarchical_exchanges(setup: DispatchSetup, slots: LayerSlots) -> List[DispatchExchange]:
    """Between nodes along the rail and on inside the node; inside the node alone, one exchange a chunk."""
    experts, found = setup.placement.num_experts, []
    inter, intra = experts * slots.capacity, experts // setup.nodes * slots.intra_node
    chunks = chunks_of(setup, slots.capacity)
    if inter:
        found += there_and_back("far tier, rail", setup.inter_node, inter)
        found += there_and_back("far tier, handed on", setup.intra_node, inter)
    if intra:
        found += there_and_back("near tier", setup.intra_node, intra // chunks) * chunks
    return found


DISPATCHER = DispatcherSpec(
    hierarchical_slots,
    hierarchical_exchanges,
    keys=(*SLOT_KEYS, "dispatch.chunks", "dispatch.group_wise", "capacity.local_share", "capacity.measured_share"),
    reasons={
        "dispatch.ragged_limit": "which has slots",
        "dispatch.chunks": "which overlaps its two tiers",
        "capacity.node_share": "where each assignment travels by itself",
    },
    most_chunks=2,
    localises=True,
)
