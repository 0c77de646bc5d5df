"""Everything that is said of one configuration on one cluster."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from locmoe_ops.dispatch.registry import dispatcher_spec
from pangu_sigma.config.check_chip import with_chip
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.cluster import Cluster
from pangu_sigma.planner.exchanges import Exchange, step_exchanges
from pangu_sigma.planner.hardware import Hardware
from pangu_sigma.planner.job import PlannedJob, layer_slots, plan_job
from pangu_sigma.planner.launches import step_launches
from pangu_sigma.planner.memory import GB, RankMemory, rank_memory
from pangu_sigma.planner.parameter_traffic import parameter_traffic
from pangu_sigma.planner.parameters import Counts, count_parameters
from pangu_sigma.planner.predict import DAY, StepTime, model_flops, rank_flops, step_time
from pangu_sigma.planner.traffic import Sent, by_cause, sent


@dataclass(frozen=True)
class JobPlan:
    """What is said of a job on some hardware.

    Attributes:
        job, hardware: what was planned.
        counts: of parameters.
        memory: of one rank.
        exchanges, traffic: the collectives of a step, and their bytes by cause, all ranks together.
        flops: of the model, a step.
        time: of a step.
    """

    job: PlannedJob
    hardware: Hardware
    counts: Counts
    memory: RankMemory
    exchanges: tuple[Exchange, ...]
    traffic: dict[str, Sent]
    flops: float
    time: StepTime

    @property
    def capacity(self) -> float:
        """Bytes of memory that a rank has; ranks that share a machine share its memory."""
        return self.hardware.memory.capacity_gb.value * GB / self.hardware.sharing(self.job.topology)

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.capacity

    @property
    def fits_recomputed(self) -> bool:
        return self.memory.total_recomputed <= self.capacity

    @property
    def tokens_per_second(self) -> float:
        return self.job.global_tokens / self.time.total

    @property
    def mfu(self) -> float:
        """Model FLOPs over what the ranks' peak would do in the step's time."""
        peak = self.hardware.peak_flops(self.job.config.runtime.precision)
        devices = self.job.topology.world_size / self.hardware.sharing(self.job.topology)
        return self.flops / (self.time.total * peak * devices)

    @property
    def exact_bytes(self) -> bool:
        """False where bytes depend on routing (ragged), or slots on what training measures."""
        config = self.job.config
        capacity, dispatch = config.moe.capacity, dispatcher_spec(config.moe.dispatch.type)
        measured = capacity.mode != "factor" or capacity.measured_share is not None or not dispatch.has_slots
        return not (measured and self.job.sparse_layers)

    def days(self, tokens: int) -> float:
        """Days that so many `tokens` take."""
        return tokens / self.tokens_per_second / DAY


def make_plan(config: Config, cluster: Cluster) -> JobPlan:
    """The plan of `config` on `cluster`.

    Raises:
        InputError: the configuration does not fit the cluster, or the hardware has no figure that it needs.
    """
    hardware = cluster.hardware
    placed = with_chip(config, hardware.chip, f"hardware '{hardware.name}'")
    job = plan_job(placed, cluster.nodes, cluster.ranks_per_node)
    exchanges = step_exchanges(job)
    return JobPlan(
        job,
        hardware,
        count_parameters(job),
        rank_memory(job, hardware),
        tuple(exchanges),
        by_cause(exchanges, job.topology),
        model_flops(job),
        step_time(job, hardware),
    )


def as_json(plan: JobPlan, tokens: int) -> dict[str, Any]:
    """The plan as JSON values: bytes, seconds, FLOPs; fractions in [0, 1]. `tokens`: to say how many days they take."""
    job, memory, time = plan.job, plan.memory, plan.time
    topology = job.topology
    slots, moved = layer_slots(job) if job.sparse_layers else None, parameter_traffic(job)
    return {
        "ranks": topology.world_size,
        "nodes": topology.nodes,
        "ranks_per_node": topology.ranks_per_node,
        "hardware": plan.hardware.name,
        "parallel": {
            "expert": topology.expert,
            "tensor": topology.tensor,
            "data": topology.data,
            "expert_data": topology.expert_data,
        },
        "batch": {"tokens": job.global_tokens, "micro_batches": job.micro_batches, "rows": job.rows},
        "parameters": asdict(plan.counts),
        "memory": {
            **asdict(memory),
            "margin": memory.margin,
            "total": memory.total,
            "total_recomputed": memory.total_recomputed,
            "capacity": plan.capacity,
        },
        "fits": plan.fits,
        "fits_recomputed": plan.fits_recomputed,
        "slots": None
        if slots is None
        else {
            "expert": slots.capacity,
            "near": slots.intra_node,
            "copies": slots.copies,
            "rows_of_expert": slots.expert_rows,
        },
        "bytes": {cause: total._asdict() for cause, total in plan.traffic.items()},
        "bytes_exact": plan.exact_bytes,
        "collectives": [{**asdict(e), **sent(e, topology)._asdict()} for e in plan.exchanges],
        "parameter_traffic": {**asdict(moved), "total": moved.total},
        "flops": {"model": plan.flops, "rank": rank_flops(job)},
        "seconds": {
            "step": time.total,
            "compute": time.compute,
            "parameters": time.parameters,
            **time.causes,
            "hidden": time.hidden,
            "launch": time.launch,
        },
        "launches": step_launches(job) if time.launch else None,
        "host_bound": time.host_bound,
        "all_to_all_share": time.all_to_all_share,
        "mfu": plan.mfu,
        "tokens_per_second": plan.tokens_per_second,
        "tokens": tokens,
        "days": plan.days(tokens),
        "assumptions": dict(plan.hardware.assumptions()),
    }
