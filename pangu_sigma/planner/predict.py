"""How long a step takes: computation at a stated efficiency, and every collective by latency and bandwidth of the links
it uses.

What the model leaves out: waiting for a slower rank, contention between jobs, and congestion beyond a node's own link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from locmoe_ops.collectives.tcp.algorithms import SMALL_BYTES
from locmoe_ops.topology import Topology
from pangu_sigma.config.derived import recomputed_parts, router_costs, shared_ffn_hidden_size
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.exchanges import BACKWARD, CAUSES, FORWARD, LAST_BACKWARD, Exchange, step_exchanges
from pangu_sigma.planner.hardware import Hardware, Link
from pangu_sigma.planner.job import ITEM, PlannedJob, layer_slots
from pangu_sigma.planner.launches import step_launches
from pangu_sigma.planner.memory import expert_rows, layer_activations, layer_memory
from pangu_sigma.planner.parameter_traffic import parameter_traffic
from pangu_sigma.planner.parameters import count_parameters

MICRO, MILLI, GIGA = 1e-6, 1e-3, 1e9
DAY = 86400.0
# Passes over what a layer keeps: written and read forward; read, and as much of gradients written and read, backward.
_ACTIVATION_PASSES = 5
_ANEW_PASSES = 2  # written and read once more, where it is recomputed
# Numbers that an optimizer step reads and writes for each parameter: gradient (three times: summed, measured, applied),
# both moments, the parameter; the latter three are written too.
_UPDATE_PASSES = 9


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step.

    Attributes:
        compute: matmuls, elementwise operations and the update.
        causes: collectives by cause.
        hidden: what of all-to-all and of gradients is overlapped with computation.
        parameters: what every micro-batch reads and writes of parameters and gradients (see `parameter_traffic`).
        launch: of the host, to launch the step's kernels, which it does while the device works on earlier ones.
    """

    compute: float
    causes: dict[str, float]
    hidden: dict[str, float]
    parameters: float = 0.0
    launch: float = 0.0

    @property
    def device(self) -> float:
        """Seconds that the device has work for."""
        return self.compute + self.parameters + sum(self.causes.values()) - sum(self.hidden.values())

    @property
    def host_bound(self) -> bool:
        """Whether the device waits for launches."""
        return self.launch > self.device

    @property
    def total(self) -> float:
        return max(self.device, self.launch)

    @property
    def all_to_all_share(self) -> float:
        """Of the step, what is spent on all-to-all beyond what computation hides."""
        return (self.causes["all_to_all"] - self.hidden["all_to_all"]) / self.total


def step_time(job: PlannedJob, hardware: Hardware) -> StepTime:
    """What one rank of `job` spends on that `hardware`, all ranks being alike."""
    seconds = [(e, e.times * exchange_time(e, job.topology, hardware)) for e in step_exchanges(job)]
    causes = {cause: sum((time for e, time in seconds if e.cause == cause), 0.0) for cause in CAUSES}
    compute = compute_time(job, hardware)
    # Gradients: two thirds of the last micro-batch's computation, its backward pass, could hide them.
    early = sum(time for e, time in seconds if e.phase == LAST_BACKWARD)
    hidden = {"all_to_all": 0.0, "gradient": min(early, compute * 2.0 / 3.0 / job.micro_batches)}
    # Tokens: chunks could hide all-to-all behind the experts, or the experts behind it: of n chunks all but one.
    chunks = job.config.moe.dispatch.chunks
    if chunks > 1 and job.sparse_layers:
        groups = job.exchange.group, f"{job.exchange.group}_rail"
        gathered = job.config.parallel.all_to_all == "gathered"  # then the backward pass hides nothing
        phases = (FORWARD,) if gathered else (FORWARD, BACKWARD)
        tokens = sum(t for e, t in seconds if e.cause == "all_to_all" and e.group in groups and e.phase in phases)
        experts = _product_time(rank_flops(job)["experts"], job, hardware) / (3.0 if gathered else 1.0)
        hidden["all_to_all"] = min(tokens, experts) * (chunks - 1) / chunks
    hidden = {cause: time * hardware.overlap.value for cause, time in hidden.items()}
    parameters = parameter_traffic(job).seconds(hardware, hardware.sharing(job.topology))
    return StepTime(compute, causes, hidden, parameters, launch_time(job, hardware))


# ---- computation


def step_flops(config: Config, tokens: int, vocab_size: int) -> dict[str, float]:
    """FLOPs of forward and backward (twice the forward), by part: products only, two a multiply-add.

    Attention counts all S x S scores, masked or not; experts count the tokens they serve, not the slots kept free for
    them.

    Args:
        config: of the network.
        tokens: that pass through it.
        vocab_size: rows of the tied head.
    """
    model = config.model
    d, ffn = model.hidden_size, model.ffn_hidden_size or 4 * model.hidden_size
    blocks = model.dense_layers + model.sparse_layers
    sparse = model.sparse_layers + model.sparse_query_layer
    dense = blocks + 1 - sparse
    attention = (blocks + 1) * (4 * d * d + 2 * model.sequence_length * d)
    gates = sum(cost.products for cost in router_costs(config))
    forward = {
        "attention": attention,
        "dense FFN": dense * 2 * d * ffn,
        "experts": sparse * config.moe.router.top_k * 2 * d * ffn,
        "routing": gates,
        "head": d * vocab_size,
    }
    if config.moe.shared_experts:
        forward["shared experts"] = sparse * 2 * d * shared_ffn_hidden_size(config)
    return {part: 3.0 * 2.0 * tokens * count for part, count in forward.items()}


def model_flops(job: PlannedJob) -> float:
    """FLOPs of a step by `step_flops`, all ranks together: what MFU counts."""
    return sum(step_flops(job.config, job.global_tokens, job.words).values())


def rank_flops(job: PlannedJob) -> dict[str, float]:
    """FLOPs that a rank carries out in a step, by part; experts compute on every slot, filled or not, unless they take
    the rows that have come alone.
    """
    parts = step_flops(job.config, job.tokens * job.micro_batches, job.words)
    tensor = job.topology.tensor
    if parts["experts"] and layer_slots(job).rows_of_all is None:
        parts["experts"] *= expert_rows(job) / (job.tokens * job.config.moe.router.top_k)
    found = {part: flops if part == "routing" else flops / tensor for part, flops in parts.items()}
    return {**found, "recomputed": recomputed_flops(job)}


def recomputed_flops(job: PlannedJob) -> float:
    """FLOPs of a rank's step that stand once more in the backward pass.

    Queries, keys, values, scores and mixing; the first map of a feed-forward network. What the last map of either half
    of a layer gives is not read by the backward pass.
    """
    model = job.config.model
    d, rows = model.hidden_size, job.tokens
    attention = (3 * d * d + 2 * model.sequence_length * d) * rows
    total = 0
    for index, part in enumerate(recomputed_parts(job.config)):
        if part != "none":
            total += attention
        if part == "all":
            of_experts = expert_rows(job)
            if job.is_sparse(index) and layer_slots(job).rows_of_all is not None:
                of_experts = rows * job.config.moe.router.top_k
            of_layer = job.inner * of_experts + job.shared_inner * rows if job.is_sparse(index) else job.inner * rows
            total += of_layer * d
    return 2.0 * total * job.micro_batches / job.topology.tensor


def compute_time(job: PlannedJob, hardware: Hardware) -> float:
    """Seconds of a step without collectives and without the traffic of parameters."""
    rates, share = hardware.compute, hardware.sharing(job.topology)
    products = _product_time(sum(rank_flops(job).values()), job, hardware)
    layers = (job.blocks + 1) * job.micro_batches * rates.layer_ms.value * MILLI
    return products + (moved_bytes(job) / (rates.bandwidth_gb_s.value * GIGA) + layers) * share


def launch_time(job: PlannedJob, hardware: Hardware) -> float:
    """Seconds in which the host launches a step's kernels; 0 where the hardware has no figure for one of them."""
    figure = hardware.compute.launch_us
    return 0.0 if figure is None else step_launches(job) * figure.value * MICRO


def moved_bytes(job: PlannedJob) -> float:
    """Bytes that elementwise operations and the update read and write on a rank in a step."""
    read = sum(layer_activations(job)) * job.micro_batches
    kept = sum(layer.kept for layer in layer_memory(job)) * job.micro_batches
    anew = max(read - kept, 0.0)
    passes = _ACTIVATION_PASSES * read + _ANEW_PASSES * anew
    return passes + _UPDATE_PASSES * ITEM * count_parameters(job).rank


def _product_time(flops: float, job: PlannedJob, hardware: Hardware) -> float:
    rate = hardware.peak_flops(job.config.runtime.precision) * hardware.compute.efficiency.value
    return flops * hardware.sharing(job.topology) / rate


# ---- collectives


def exchange_time(exchange: Exchange, topology: Topology, hardware: Hardware) -> float:
    """Seconds of one call.

    Exchanges go to all peers at once, over each tier's links at the same time. Sums and gathers among ranks of one node
    go tier by tier: whole islands first, then one part of an island between them (as `HierarchicalAllReduce` does with
    nodes).

    Args:
        exchange: the call.
        topology: of the job.
        hardware: its links.
    """
    island = hardware.island
    peers = _peers(topology, exchange.group, island.size if island else 1)
    part, rounds = float(exchange.elements * exchange.item), 1  # bytes for each peer in a round
    if exchange.operation != "all_gather" and not (exchange.operation == "all_reduce" and part <= SMALL_BYTES):
        part /= 1 + sum(peers)
        rounds = 2 if exchange.operation == "all_reduce" else 1  # scattered, then gathered
    by_tier = not exchange.operation.startswith("all_to_all") and not peers.network
    islands = 1 + peers.node // (peers.island + 1)
    between = _seconds(part, islands - 1 if by_tier else peers.node, hardware.node)
    inside = _seconds(part * islands if by_tier else part, peers.island, island.link) if island else 0.0
    sharing = topology.ranks_per_node if hardware.network_per_node else 1
    network = _seconds(part * sharing, peers.network, hardware.network)
    seconds = inside + between if by_tier else max(inside, between, network)
    return hardware.call_us.value * MICRO + rounds * seconds


def _seconds(part: float, peers: int, link: Link) -> float:
    """Of sending `part` bytes to each of `peers`; messages to several peers are under way together, hence a logarithm
    of latencies.
    """
    latency = math.ceil(math.log2(peers + 1)) * link.latency_us.value * MICRO
    return latency + peers * part / (link.bandwidth_gb_s.value * GIGA)


class _Peers(NamedTuple):
    """Ranks that a rank exchanges with, by the links that lead to them."""

    island: int
    node: int  # beyond the island
    network: int


@lru_cache(maxsize=512)
def _peers(topology: Topology, kind: str, island: int) -> _Peers:
    """Of a rank in a group of that kind, on islands of that many ranks."""
    first, *others = topology.groups(kind)[0]
    node = [r for r in others if topology.node_of(r) == topology.node_of(first)]
    near = [r for r in node if r // island == first // island]
    return _Peers(len(near), len(node) - len(near), len(others) - len(node))
