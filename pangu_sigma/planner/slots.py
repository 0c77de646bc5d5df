"""The slots of a sparse layer: send buffers and expert buffers of one rank, as the dispatchers of `locmoe_ops.dispatch`
cut them.

Shape legend: P ranks of the group that exchanges tokens, on V nodes with R each; E experts of these ranks, L = E / P on
a rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from locmoe_ops.capacity.factor import capacity_by_factor
from pangu_sigma.planner.job import PlannedJob


@dataclass(frozen=True)
class LayerSlots:
    """Of one sparse layer, for one rank's micro-batch.

    Attributes:
        capacity: slots for each expert and source rank; with `hierarchical` those of the far tier. Group-wise: of a
            share.
        near: further slots for each expert of the own node (hierarchical). Group-wise: of a share.
        expert_calls: rows that each of this rank's experts is called with, one number a call; group-wise: of a share.
        shares: ranks that a slot is shared out to (group-wise), else 1.
        counted: False where nothing is fixed (ragged): then rows travel as routing has it, and `capacity` is what there
            is room for.
    """

    capacity: int
    near: int
    expert_calls: tuple[int, ...]
    shares: int = 1
    counted: bool = True

    @property
    def expert_rows(self) -> int:
        """Rows that each of this rank's experts computes on, all calls and shares together."""
        return sum(self.expert_calls) * self.shares


def layer_slots(job: PlannedJob, factor: float | None = None) -> LayerSlots:
    """Slots for capacity factor `factor`, by default `planned_factor`."""
    factor = planned_factor(job) if factor is None else factor
    kind = job.config.moe.dispatch.type
    if kind == "ragged":
        return _ragged(job)
    return _hierarchical(job, factor) if kind == "hierarchical" else _flat(job, factor)


def planned_factor(job: PlannedJob) -> float:
    """The capacity factor to plan with. Where slots are measured in training: the most that the measurement may ask
    for.
    """
    capacity, rules = job.config.moe.capacity, job.slot_rules
    if capacity.mode == "factor":
        return capacity.factor
    whole = rules.experts_in_play() / job.config.moe.router.top_k  # room for every token
    return whole if capacity.maximum_factor is None else min(capacity.maximum_factor, whole)


def _shares(job: PlannedJob) -> int:
    return job.topology.tensor if job.config.moe.dispatch.group_wise else 1


def _flat(job: PlannedJob, factor: float) -> LayerSlots:
    chunks, shares, ranks = job.config.moe.dispatch.chunks, _shares(job), job.exchange.ep
    wanted = capacity_by_factor(job.tokens, job.config.moe.router.top_k, job.slot_rules.experts_in_play(), factor)
    capacity = -(-wanted // (chunks * shares)) * chunks
    if ranks == 1:
        return LayerSlots(capacity, 0, (capacity,))
    return LayerSlots(capacity, 0, (ranks * capacity // chunks,) * chunks, shares)


def _hierarchical(job: PlannedJob, factor: float) -> LayerSlots:
    chunks, shares = job.config.moe.dispatch.chunks, _shares(job)
    near_wanted, far_wanted = job.slot_rules.tier_capacities(job.slot_rules.placement, factor)
    far = -(-far_wanted // shares)
    chunks = chunks if far else 1
    near = -(-max(near_wanted - far * shares, 0) // (chunks * shares)) * chunks
    neighbours = len(job.topology.group_of(f"{job.exchange.group}_node", 0))
    calls = (neighbours * near // chunks,) * chunks if near else ()
    return LayerSlots(far, near, (*calls, job.exchange.ep * far) if far else calls, shares)


def _ragged(job: PlannedJob) -> LayerSlots:
    dispatch, top_k, ranks = job.config.moe.dispatch, job.config.moe.router.top_k, job.exchange.ep
    rows = job.tokens * top_k
    worst = ranks * job.tokens * min(top_k, job.experts_per_rank)
    limit = dispatch.ragged_limit
    room = rows if ranks == 1 else worst if limit is None else min(worst, math.ceil(rows * limit))
    capacity = min(room, ranks * job.tokens)
    return LayerSlots(capacity, 0, (capacity,), counted=False)
