"""How long a step takes: computation at a stated efficiency, and every collective by latency and bandwidth of the links
it uses.

What the model leaves out: waiting for a slower rank, contention between jobs, and congestion beyond a node's own link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Iterable

from locmoe_ops.collectives.tcp.algorithms import SMALL_BYTES
from locmoe_ops.topology import Topology
from pangu_sigma.planner.exchanges import CAUSES, LAST_BACKWARD, Exchange, step_exchanges
from pangu_sigma.planner.flops import step_flops
from pangu_sigma.planner.hardware import Hardware, Link
from pangu_sigma.planner.job import ITEM, PlannedJob
from pangu_sigma.planner.memory import layer_activations
from pangu_sigma.planner.parameters import count_parameters
from pangu_sigma.planner.slots import layer_slots

MICRO, MILLI, GIGA = 1e-6, 1e-3, 1e9
DAY = 86400.0
# Passes over what a layer keeps: written and read forward; read, and as much of gradients written and read, backward.
_ACTIVATION_PASSES = 5
# Numbers that an optimizer step reads and writes for each parameter: gradient (three times: summed, measured, applied),
# both moments, the parameter; the latter three are written too.
_UPDATE_PASSES = 9


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step. `compute`: matmuls, elementwise operations and the update; `causes`: collectives by
    cause;
    `hidden`: what of all-to-all and of gradients runs beside computation.
    """

    compute: float
    causes: dict[str, float]
    hidden: dict[str, float]

    @property
    def total(self) -> float:
        return self.compute + sum(self.causes.values()) - sum(self.hidden.values())

    @property
    def all_to_all_share(self) -> float:
        """Of the step, what is spent on all-to-all beyond what computation hides."""
        return (self.causes["all_to_all"] - self.hidden["all_to_all"]) / self.total


def step_time(job: PlannedJob, hardware: Hardware) -> StepTime:
    """What one rank spends, all ranks being alike."""
    exchanges = step_exchanges(job)
    causes = {cause: 0.0 for cause in CAUSES}
    for exchange in exchanges:
        causes[exchange.cause] += exchange.times * exchange_time(exchange, job.topology, hardware)
    compute = compute_time(job, hardware)
    could = {
        "all_to_all": _tokens_beside_experts(job, hardware, exchanges),
        "gradient": _gradients_beside_backward(job, hardware, exchanges, compute),
    }
    return StepTime(compute, causes, {cause: seconds * hardware.overlap.value for cause, seconds in could.items()})


# ---- computation


def model_flops(job: PlannedJob) -> float:
    """FLOPs of a step by the model's own definition (see `pangu_sigma.planner.flops`), all ranks together: what MFU
    counts.
    """
    return sum(step_flops(job.config, job.global_tokens, job.words).values())


def rank_flops(job: PlannedJob) -> dict[str, float]:
    """FLOPs that a rank carries out in a step, by part; experts compute on every slot, filled or not."""
    parts = step_flops(job.config, job.tokens * job.micro_batches, job.words)
    tensor = job.topology.tensor
    if parts["experts"]:
        slots = job.experts_per_rank * layer_slots(job).expert_rows
        parts["experts"] *= slots / (job.tokens * job.config.moe.router.top_k)
    return {part: flops if part == "routing" else flops / tensor for part, flops in parts.items()}


def compute_time(job: PlannedJob, hardware: Hardware) -> float:
    """Seconds of a step without collectives."""
    rates, share = hardware.compute, hardware.sharing(job.topology)
    products = _product_time(sum(rank_flops(job).values()), job, hardware)
    layers = (job.blocks + 1) * job.micro_batches * rates.layer_ms.value * MILLI
    return products + (moved_bytes(job) / (rates.bandwidth_gb_s.value * GIGA) + layers) * share


def moved_bytes(job: PlannedJob) -> float:
    """Bytes that elementwise operations and the update read and write on a rank in a step."""
    kept = sum(layer_activations(job)) * job.micro_batches
    return _ACTIVATION_PASSES * kept + _UPDATE_PASSES * ITEM * count_parameters(job).rank


def _product_time(flops: float, job: PlannedJob, hardware: Hardware) -> float:
    rates = hardware.compute
    return (
        flops
        * hardware.sharing(job.topology)
        / (hardware.peak_flops(job.config.runtime.precision) * rates.efficiency.value)
    )


def _tokens_beside_experts(job: PlannedJob, hardware: Hardware, exchanges: Iterable[Exchange]) -> float:
    """Seconds of all-to-all that chunks could hide behind the experts, or the experts behind it: of n chunks all but
    one.
    """
    chunks = job.config.moe.dispatch.chunks
    if chunks == 1 or not job.sparse_layers:
        return 0.0
    flying = sum(
        e.times * exchange_time(e, job.topology, hardware)
        for e in exchanges
        if e.cause == "all_to_all" and e.group in (job.exchange.group, f"{job.exchange.group}_rail")
    )
    experts = _product_time(rank_flops(job)["experts"], job, hardware)
    return min(flying, experts) * (chunks - 1) / chunks


def _gradients_beside_backward(
    job: PlannedJob, hardware: Hardware, exchanges: Iterable[Exchange], compute: float
) -> float:
    """Seconds of gradients that the last backward pass could hide: two thirds of a micro-batch's computation."""
    early = sum(e.times * exchange_time(e, job.topology, hardware) for e in exchanges if e.phase == LAST_BACKWARD)
    return min(early, compute * 2.0 / 3.0 / job.micro_batches)


# ---- collectives


def exchange_time(exchange: Exchange, topology: Topology, hardware: Hardware) -> float:
    """Seconds of one call.

    Exchanges go to all peers at once, over each tier's links at the same time. Sums and gathers among ranks of one node
    go tier by
    tier: whole islands first, then one part of an island between them (as `HierarchicalAllReduce` does with nodes).
    """
    island = hardware.island
    near, same_node, elsewhere = _peers(topology, exchange.group, island.size if island else 1)
    part, rounds = _part_and_rounds(exchange, 1 + near + same_node + elsewhere)
    by_tier = not exchange.operation.startswith("all_to_all") and not elsewhere
    islands = 1 + same_node // (near + 1)
    between = _seconds(part, islands - 1 if by_tier else same_node, hardware.node)
    inside = _seconds(part * islands if by_tier else part, near, island.link) if island else 0.0
    seconds = inside + between if by_tier else max(inside, between, _network(part, elsewhere, topology, hardware))
    return hardware.call_us.value * MICRO + rounds * seconds


def _seconds(part: float, peers: int, link: Link) -> float:
    """Of sending `part` bytes to each of `peers`; messages to several peers are under way together, hence a logarithm
    of latencies.
    """
    return math.ceil(math.log2(peers + 1)) * link.latency_us.value * MICRO + peers * part / (
        link.bandwidth_gb_s.value * GIGA
    )


def _network(part: float, peers: int, topology: Topology, hardware: Hardware) -> float:
    sharing = topology.ranks_per_node if hardware.network_per_node else 1
    return _seconds(part * sharing, peers, hardware.network)


def _part_and_rounds(exchange: Exchange, size: int) -> tuple[float, int]:
    """Bytes for each peer in a round, and rounds."""
    whole = exchange.elements * exchange.item
    if exchange.operation == "all_gather":
        return whole, 1
    if exchange.operation != "all_reduce":
        return whole / size, 1
    return (whole, 1) if whole <= SMALL_BYTES else (whole / size, 2)


@lru_cache(maxsize=512)
def _peers(topology: Topology, kind: str, island: int) -> tuple[int, int, int]:
    """Of a rank in a group of that kind: peers on its island, others on its node, and those on other nodes."""
    first, *others = topology.groups(kind)[0]
    same_node = [r for r in others if topology.node_of(r) == topology.node_of(first)]
    near = [r for r in same_node if r // island == first // island]
    return len(near), len(same_node) - len(near), len(others) - len(same_node)
