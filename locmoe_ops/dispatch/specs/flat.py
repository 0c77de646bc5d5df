"""What flat dispatch declares: its slots and what it exchanges. The Cells are `locmoe_ops.dispatch.flat`.

Shape legend: P ranks of the expert-parallel group, E experts, L = E / P experts a rank, C slots per expert from each
rank, c = C / chunks slots of a chunk, M = E * C slots of the send buffer, d hidden size.
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


def flat_slots(setup: DispatchSetup) -> LayerSlots:
    """C, a multiple of the chunks, for each expert; group-wise of a share. A rank alone cuts nothing in chunks."""
    ranks, chunks, shares = setup.placement.ep, setup.options.chunks, setup.shares
    capacity = share_of_slots(setup.capacities.uniform, shares, chunks)
    calls = (capacity,) if ranks == 1 else (ranks * capacity // chunks,) * chunks
    return LayerSlots(capacity, 0, calls, setup.placement.num_experts * capacity, shares)


def flat_exchanges(setup: DispatchSetup, slots: LayerSlots) -> List[DispatchExchange]:
    """An all-to-all of the whole send buffer, or one a chunk."""
    chunks = setup.options.chunks
    return there_and_back("tokens", setup.placement.group, slots.send_rows // chunks) * chunks


DISPATCHER = DispatcherSpec(
    flat_slots,
    flat_exchanges,
    keys=(*SLOT_KEYS, "dispatch.chunks", "dispatch.group_wise"),
    reasons={
        "dispatch.ragged_limit": "which has slots",
        "capacity.local_share": "which has one tier",
        "capacity.measured_share": "which has one tier",
        "capacity.node_share": "where each assignment travels by itself",
    },
)
