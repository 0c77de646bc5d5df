"""The slots of a sparse layer, as the job's dispatcher cuts them (`locmoe_ops.dispatch.geometry`)."""

from __future__ import annotations

from locmoe_ops.dispatch.geometry import DispatchExchange, LayerSlots, gateway_exchanges, share_exchanges
from locmoe_ops.dispatch.registry import dispatcher_spec
from pangu_sigma.planner.job import PlannedJob


def layer_slots(job: PlannedJob, factor: float | None = None) -> LayerSlots:
    """Slots for capacity factor `factor`, by default `planned_factor`."""
    setup = job.slot_rules.dispatch_setup(job.exchange, planned_factor(job) if factor is None else factor)
    return dispatcher_spec(job.config.moe.dispatch.type).slots(setup)


def layer_exchanges(job: PlannedJob) -> list[DispatchExchange]:
    """What one sparse layer exchanges on the way to its experts, and group-wise into and out of them, in a
    micro-batch.
    """
    setup, spec = (
        job.slot_rules.dispatch_setup(job.exchange, planned_factor(job)),
        dispatcher_spec(job.config.moe.dispatch.type),
    )
    slots = spec.slots(setup)
    return [
        *spec.exchanges(setup, slots),
        *share_exchanges(slots),
        *gateway_exchanges(slots, setup.placement.experts_per_rank),
    ]


def planned_factor(job: PlannedJob) -> float:
    """The capacity factor to plan with. Where slots are measured in training: the most that the measurement may ask
    for.
    """
    capacity, rules = job.config.moe.capacity, job.slot_rules
    if capacity.mode == "factor":
        return capacity.factor
    whole = rules.experts_in_play() / job.config.moe.router.top_k  # room for every token
    return whole if capacity.maximum_factor is None else min(capacity.maximum_factor, whole)
