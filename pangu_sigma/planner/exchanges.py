"""Every collective of a training step, in the shapes that the network and the optimizer step give it.

Shape legend: T tokens of a micro-batch, d hidden size, P ranks of the expert-parallel group, E experts, L = E / P, M
sparse layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Iterator, NamedTuple, Sequence

from locmoe_ops.dispatch.geometry import COUNTS, DispatchExchange
from locmoe_ops.dispatch.registry import dispatcher_spec
from locmoe_ops.router_registry import RouterCost, router_spec
from locmoe_ops.topology import ExpertPlacement, local_experts_table, most_nodes
from pangu_sigma.config.ascend import overlap_bucket
from pangu_sigma.config.derived import has_experts, layer_routers
from pangu_sigma.model.parameter_groups import (
    BUCKET_ELEMENTS,
    plan_alike,
    plan_buckets,
    stretch_of,
)
from pangu_sigma.planner.job import ITEM, PlannedJob, layer_exchanges, layer_slots
from pangu_sigma.planner.parameters import in_gradient_order

CAUSES = ("all_to_all", "gradient", "tensor", "other")
FORWARD, BACKWARD, LAST_BACKWARD, UPDATE = "forward", "backward", "last backward", "update"


@dataclass(frozen=True)
class Exchange:
    """A collective as one rank runs it.

    Attributes:
        cause: one of `CAUSES`, as `pangu_sigma.train.metrics` counts; `name`: what it carries.
        operation: as in `locmoe_ops.collectives`; `all_to_all_v` stands for an even spread of tokens over ranks.
        group: kind of `locmoe_ops.topology.GROUP_KINDS`.
        elements: numbers that this rank puts in; item: bytes of each.
        phase: forward and backward (once a micro-batch), last backward and update (once an optimizer step).
        times: calls in an optimizer step.
    """

    cause: str
    name: str
    operation: str
    group: str
    elements: int
    item: int
    phase: str
    times: int = 1


@lru_cache(maxsize=4)  # time, memory and bytes of a plan ask for them
def step_exchanges(job: PlannedJob) -> tuple[Exchange, ...]:
    """All collectives of an optimizer step; those in groups of one rank, which nothing carries out, are left out."""
    micro_batch = [*_tensor_parallel(job)]
    if has_experts(job.config):
        micro_batch += [replace(one, times=one.times * job.sparse_layers) for one in _dispatch(job)]
        micro_batch += _statistics(job)
    found = [*(replace(one, times=one.times * job.micro_batches) for one in micro_batch), *_update(job)]
    return tuple(one for one in found if job.topology.group_size(one.group) > 1)


# ---- layers that a tensor-parallel group shares out


def _tensor_parallel(job: PlannedJob) -> Iterator[Exchange]:
    """Sums where heads, inner features and words are put together; nothing where the group has one rank."""
    rows, item = job.tokens * job.config.model.hidden_size, job.compute_item
    attentions = job.blocks + 1
    yield _tensor("attention, sum", "all_reduce", rows, item, FORWARD, attentions)
    yield _tensor("attention, gradient", "all_reduce", rows, item, BACKWARD, attentions)
    yield _tensor("query, gradient", "all_reduce", rows, item, BACKWARD)
    networks = job.dense_layers + (job.sparse_layers if job.shared_inner else 0)
    yield _tensor("feed-forward, sum", "all_reduce", rows, item, FORWARD, networks)
    yield _tensor("feed-forward, gradient", "all_reduce", rows, item, BACKWARD, networks)
    yield _tensor("embedding, sum", "all_reduce", rows, item, FORWARD)
    yield _tensor("head, gradient", "all_reduce", rows, item, BACKWARD)
    yield _tensor("cross-entropy", "all_gather", 3 * job.tokens, ITEM, FORWARD)


def _tensor(name: str, operation: str, elements: int, item: int, phase: str, times: int = 1) -> Exchange:
    return Exchange("tensor", name, operation, "tp", elements, item, phase, times)


# ---- tokens to their experts and back


def _dispatch(job: PlannedJob) -> Iterator[Exchange]:
    """The dispatcher's exchanges, and the sums of experts whose inner features a tensor-parallel group shares out."""
    width = job.config.model.hidden_size
    for one in layer_exchanges(job):
        elements = one.rows if one.carries == COUNTS else one.rows * (width + one.extra)
        item = one.item or (ITEM if one.carries == COUNTS else job.compute_item)
        phase = BACKWARD if one.backward else FORWARD
        if one.operation == "all_to_all" and job.config.parallel.all_to_all == "gathered":
            yield _gathered_tokens(job, one, elements, item)
        else:
            yield Exchange("all_to_all", one.name, one.operation, one.group, elements, item, phase)
    slots = layer_slots(job)
    for rows in slots.expert_calls if slots.shares == 1 else ():
        elements = width * (slots.rows_of_all or job.experts_per_rank * rows)
        yield _tensor("experts, gradient", "all_reduce", elements, job.compute_item, BACKWARD)
        yield _tensor("experts, sum", "all_reduce", elements, job.compute_item, FORWARD)


def _gathered_tokens(job: PlannedJob, one: DispatchExchange, elements: int, item: int) -> Exchange:
    """An all-to-all as `locmoe_ops.collectives.gathered` makes it: all parts gathered, and the gradient of all of
    it scattered.
    """
    if not one.backward:
        return Exchange("all_to_all", one.name, "all_gather", one.group, elements, item, FORWARD)
    whole = elements * job.topology.group_size(one.group)
    return Exchange("all_to_all", one.name, "reduce_scatter", one.group, whole, item, BACKWARD)


# ---- router losses


def _statistics(job: PlannedJob) -> Iterator[Exchange]:
    """Counts and probabilities of each expert (see `RoutingStatistics`), and what else a loss is made of, summed over
    ranks by the layers' routers that have any. The gradient of a sum of losses is the same on all ranks.
    """
    for cost, layers in _alike(job.router_costs):
        elements = segments(job, cost) * 2 * job.config.moe.num_experts
        for phase in (FORWARD, BACKWARD):
            if cost.statistics != "none":
                yield Exchange("other", "router statistics", "all_reduce", "dp", elements, ITEM, phase, layers)
            if cost.sums_losses and phase == FORWARD:
                yield Exchange("other", "router losses of tokens", "all_reduce", "dp", 1, ITEM, phase, layers)
            if cost.sums_domains:
                of_domains = _sets(job, job.config.moe.router.statistics) * job.domains * job.config.moe.num_experts
                what = "router statistics of domains"
                yield Exchange("other", what, "all_reduce", "dp", of_domains, ITEM, phase, layers)


def _alike(costs: Sequence[RouterCost]) -> list[tuple[RouterCost, int]]:
    """Costs that differ, and how many layers have each."""
    found: list[tuple[RouterCost, int]] = []
    for cost in costs:
        if not any(cost == one for one, _ in found):
            found.append((cost, sum(cost == other for other in costs)))
    return found


def segments(job: PlannedJob, cost: RouterCost) -> int:
    """Sets of tokens that the losses of a router with this `cost` take their statistics over."""
    sets = _sets(job, job.config.moe.router.statistics)
    # Locality is a matter of nodes at least.
    return max(sets, _sets(job, "node")) if cost.statistics == "node" else sets


def _sets(job: PlannedJob, scope: str) -> int:
    return job.slot_rules.layout.count_sets(scope)


# ---- the optimizer step


def _update(job: PlannedJob) -> Iterator[Exchange]:
    found = in_gradient_order(job)
    early = early_messages(job)
    for size in early:
        yield from _summed("dense gradients, early", job, "dp", size, LAST_BACKWARD)
    experts = [p.size for p in found if p.expert]
    if job.reads_status:
        yield Exchange("gradient", "overflows", "all_reduce", "world", 1, ITEM, UPDATE)
    if shares_state(job):
        yield from _update_of_shares(job)
        return
    late = [p.size for p in found if not p.expert and not (early and p.is_map)]
    together = job.gradient_item == ITEM  # then statistics travel with gradients
    for size in _messages([*late, _statistics_size(job)] if together else late):
        yield from _summed("dense gradients", job, "dp", size)
    if not together:
        yield from _summed("router statistics and losses", job, "dp", _statistics_size(job), item=ITEM)
    for size in _messages(experts):
        yield from _summed("expert gradients", job, "edp", size)
    yield _norm("norm of dense gradients", "tp")
    if experts:
        yield _norm("norm of expert gradients", "tp")
        yield _norm("norm", "ep")


def shares_state(job: PlannedJob) -> bool:
    """True where data-parallel ranks share optimizer state out (see `pangu_sigma.train.sharding`)."""
    return job.config.optimizer.zero != "none" and job.topology.data > 1


def shares_experts(job: PlannedJob) -> bool:
    """True where that of experts is shared out too: they have several replicas, and it is not on the host."""
    return shares_state(job) and job.topology.expert_data > 1 and job.config.optimizer.expert_state == "device"


class Stretch(NamedTuple):
    """A bucket of parameters: numbers that each rank of a group updates of it; whether their gradients come as sums."""

    size: int
    summed: bool


def stretches(job: PlannedJob, expert: bool) -> list[Stretch]:
    """The buckets of dense parameters or of experts, as they are shared out."""
    early = bool(early_messages(job))
    found = [p for p in in_gradient_order(job) if p.expert == expert]
    ranks = job.topology.expert_data if expert else job.topology.data
    sizes = [p.size for p in found]
    cuts = plan_alike(sizes, [(early and p.is_map, p.decays, p.split) for p in found])
    return [Stretch(stretch_of(sizes[start:end], ranks), early and found[start].is_map) for start, end in cuts]


def _update_of_shares(job: PlannedJob) -> Iterator[Exchange]:
    """After the early gradients."""
    yield from _summed("router statistics and losses", job, "dp", _statistics_size(job), item=ITEM)
    for stretch in stretches(job, expert=False):
        if not stretch.summed:
            yield from _scattered("dense gradients", job, "dp", stretch.size)
        yield from _gathered("updated dense parameters", job, "dp", stretch.size)
    if shares_experts(job):
        for stretch in stretches(job, expert=True):
            yield from _scattered("expert gradients", job, "edp", stretch.size)
            yield from _gathered("updated experts", job, "edp", stretch.size)
    else:
        for size in _messages([p.size for p in in_gradient_order(job) if p.expert]):
            yield from _summed("expert gradients", job, "edp", size)
    yield _norm("norm", "world")


def _tiers(job: PlannedJob, group: str) -> list[tuple[str, int]]:
    """Groups of a reduce-scatter's steps, with their sizes: inside nodes, then along rails, where there are both."""
    parts = [(kind, job.topology.group_size(kind)) for kind in (f"{group}_node", f"{group}_rail")]
    return parts if all(size > 1 for _, size in parts) else [(group, job.topology.group_size(group))]


def _scattered(what: str, job: PlannedJob, group: str, stretch: int, phase: str = UPDATE) -> Iterator[Exchange]:
    """Gradients to the ranks that sum a `stretch` each; narrow ones as `NarrowReduceScatter` has it."""
    elements, item = stretch * job.topology.group_size(group), job.gradient_item
    operation = "reduce_scatter" if item == ITEM else "all_to_all"
    for kind, size in _tiers(job, group):
        yield Exchange("gradient", what, operation, kind, elements, item, phase)
        elements //= size


def _gathered(
    what: str, job: PlannedJob, group: str, stretch: int, item: int = ITEM, phase: str = UPDATE
) -> Iterator[Exchange]:
    elements = stretch
    for kind, size in _tiers(job, group)[::-1]:
        yield Exchange("gradient", what, "all_gather", kind, elements, item, phase)
        elements *= size


def early_messages(job: PlannedJob) -> list[int]:
    """Numbers in each message of gradients that start during the last backward pass; none where that is not asked
    for.
    """
    if not job.config.parallel.overlap_gradients or job.topology.data == 1:
        return []
    return _messages([p.size for p in in_gradient_order(job) if p.is_map], overlap_bucket(job.config))


def _messages(sizes: list[int], limit: int = BUCKET_ELEMENTS) -> list[int]:
    return [sum(sizes[start:end]) for start, end in plan_buckets(sizes, limit)]


def _norm(name: str, group: str) -> Exchange:
    return Exchange("gradient", name, "all_reduce", group, 1, ITEM, UPDATE)


def _summed(
    what: str, job: PlannedJob, group: str, size: int, phase: str = UPDATE, item: int | None = None
) -> Iterator[Exchange]:
    """One message; within nodes first (see `HierarchicalAllReduce`, and of narrow numbers `NarrowAllReduce`; the mesh,
    which adds these in float32 itself, sends early ones as it sends others). `item`: bytes of a number; None: as
    gradients have them.
    """
    item = job.gradient_item if item is None else item
    if item < ITEM and not (phase == LAST_BACKWARD and job.backend == "tcp"):
        stretch = stretch_of([size], job.topology.group_size(group))
        yield from _scattered(what, job, group, stretch, phase)
        yield from _gathered(what, job, group, stretch, item, phase)
        return
    neighbours, rail = (job.topology.group_size(f"{group}_{part}") for part in ("node", "rail"))
    if neighbours == 1 or rail == 1:
        yield Exchange("gradient", what, "all_reduce", group, size, item, phase)
        return
    share = -(-size // neighbours)
    for name, operation, kind, elements in (
        ("to shares", "reduce_scatter", "node", share * neighbours),
        ("between nodes", "all_reduce", "rail", share),
        ("whole", "all_gather", "node", share),
    ):
        yield Exchange("gradient", f"{what}, {name}", operation, f"{group}_{kind}", elements, item, phase)


def _statistics_size(job: PlannedJob) -> int:
    """Numbers that travel with the dense gradients (see `pangu_sigma.train.step.Statistics`)."""
    layers, experts = (job.sparse_layers, job.config.moe.num_experts) if job.sparse_layers else (1, 1)
    if not job.sparse_layers:
        return 4 + experts + 2
    moe, layout = job.config.moe, job.slot_rules.layout
    counts_undecided = any(router_spec(one.type).counts_undecided for one in layer_routers(job.config))
    sums_values = any(cost.sums_values for cost in job.router_costs)
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)
    by_nodes = most_nodes(moe.router.top_k, local_experts_table(layout, placement))
    # One more for rows beyond the room for them, where dispatch limits that
    limits_rows = moe.dispatch.ragged_limit is not None
    balance = moe.router.balance
    of_expert = 1 + sums_values + (balance.bins if balance.kind == "quantile" else 0)
    of_layer = 2 + counts_undecided + dispatcher_spec(moe.dispatch.type).counts_copies + by_nodes
    return 4 + layers * (experts * of_expert + of_layer) + limits_rows
