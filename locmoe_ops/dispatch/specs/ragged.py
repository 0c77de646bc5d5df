"""What ragged dispatch declares: the rows that there is room for and what it exchanges. The Cells are
`locmoe_ops.dispatch.ragged`.

Shape legend: T tokens of this rank, k choices a token, N = k * T assignments, P ranks of the expert-parallel group, E
experts, L = E / P experts a rank, R rows that a rank has room for, S rows of a local expert's region, d hidden size.
"""

import math
from typing import List

from locmoe_ops.dispatch.geometry import COUNTS, DispatchExchange, DispatchSetup, LayerSlots, there_and_back
from locmoe_ops.dispatch.registry import DispatcherSpec


def room_for_rows(setup: DispatchSetup) -> int:
    """R: rows that a rank can take in. Without a limit all tokens of all ranks, each as often as it can come here."""
    ranks, rows = setup.placement.ep, setup.tokens * setup.top_k
    if ranks == 1:
        return rows
    worst = ranks * setup.tokens * min(setup.top_k, setup.placement.experts_per_rank)
    limit = setup.options.ragged_limit
    return worst if limit is None else min(worst, math.ceil(rows * limit))


def ragged_slots(setup: DispatchSetup) -> LayerSlots:
    """S = min(R, P * T), as no token comes to an expert twice; what is sent are the N assignments themselves.

    A kernel that takes unequal groups needs no regions: then the L experts share the R rows.
    """
    room, rows = room_for_rows(setup), setup.tokens * setup.top_k
    if setup.options.fused_experts:
        share = -(-room // setup.placement.experts_per_rank)
        return LayerSlots(room, 0, (share,), rows, counted=False, rows_of_all=room)
    region = min(room, setup.placement.ep * setup.tokens)
    return LayerSlots(region, 0, (region,), rows, counted=False)


def ragged_exchanges(setup: DispatchSetup, slots: LayerSlots) -> List[DispatchExchange]:
    """The rows, and how many of them each rank has for which expert."""
    group = setup.placement.group
    counts = DispatchExchange("counts", "all_gather", group, setup.placement.num_experts, COUNTS)
    return [*there_and_back("tokens", group, slots.send_rows, "all_to_all_v"), counts]


DISPATCHER = DispatcherSpec(
    ragged_slots,
    ragged_exchanges,
    keys=("dispatch.ragged_limit",),
    reasons={
        "dispatch.group_wise": "whose parts do not split evenly",
        "dispatch.chunks": "whose parts have no common size to cut",
        "dispatch.overflow": "which has none",
        "dispatch.drop_priority": "which drops nothing",
        "capacity.local_share": "which has one tier",
        "capacity.measured_share": "which has one tier",
        "capacity.node_share": "where each assignment travels by itself",
    },
    has_slots=False,
    fuses_permute=True,
)
