"""What dispatch with one copy a node declares: its slots and what it exchanges. The Cells are
`locmoe_ops.dispatch.node_dedup`.

Shape legend: T tokens of this rank, k choices a token, V nodes of the expert-parallel group, R of its ranks on each, E
experts, L = E / (V * R) experts a rank, d hidden size. Each rank sends an expert of its own node up to C_in tokens, any
other up to C_out, and each other node up to C copies. M_in = R * L * C_in and V * C rows of the send buffer are for
either; X = R * L * C_out slots are for the assignments of one node to another's experts.
"""

from typing import List

from locmoe_ops.dispatch.geometry import (
    COUNTS,
    DispatchExchange,
    DispatchSetup,
    LayerSlots,
    share_of_slots,
    there_and_back,
)
from locmoe_ops.dispatch.registry import SLOT_KEYS, DispatcherSpec
from locmoe_ops.dispatch.specs.hierarchical import chunks_of


def node_dedup_slots(setup: DispatchSetup) -> LayerSlots:
    """C_out, C_in and C. C_in is rounded up to a multiple of the chunks. More copies than tokens, or than assignments
    that have slots on the node, are never of use. On a single node there is one tier, of C_in.
    """
    wanted_intra, wanted_inter = setup.capacities.tiers
    inter = wanted_inter if setup.nodes > 1 else 0
    chunks = chunks_of(setup, inter)
    intra = share_of_slots(wanted_intra, 1, chunks)
    copies = min(setup.tokens, setup.experts_per_node * inter)
    if inter and setup.capacities.copies is not None:
        copies = min(copies, setup.capacities.copies)
    calls = (setup.neighbours * intra // chunks,) * chunks if intra else ()
    calls += (setup.neighbours * (setup.nodes - 1) * inter,) if inter else ()
    return LayerSlots(inter, intra, calls, setup.experts_per_node * intra + setup.nodes * copies, copies=copies)


def node_dedup_exchanges(setup: DispatchSetup, slots: LayerSlots) -> List[DispatchExchange]:
    """Along the rail the copies, each with its token's k weights, and which of them each slot is for; inside the node
    what becomes of them, and what never left it.
    """
    near, far = setup.experts_per_node * slots.intra_node, setup.experts_per_node * slots.capacity
    chunks, found = chunks_of(setup, slots.capacity), []
    if slots.copies:
        found += there_and_back("copies, rail", setup.inter_node, setup.nodes * slots.copies, extra=setup.top_k)
        found.append(
            DispatchExchange("slots of copies, rail", "all_to_all", setup.inter_node, setup.nodes * far, COUNTS)
        )
        found += there_and_back("copies, expanded", setup.intra_node, (setup.nodes - 1) * far)
    if near:
        found += there_and_back("near tier", setup.intra_node, near // chunks) * chunks
    return found


DISPATCHER = DispatcherSpec(
    node_dedup_slots,
    node_dedup_exchanges,
    keys=(
        *SLOT_KEYS,
        "dispatch.chunks",
        "capacity.local_share",
        "capacity.measured_share",
        "capacity.node_share",
    ),
    reasons={
        "dispatch.ragged_limit": "which has slots",
        "dispatch.chunks": "which overlaps its two tiers",
        "dispatch.group_wise": "where the slots of a share would need the copies of all shares",
    },
    most_chunks=2,
    localises=True,
    counts_copies=True,
)
