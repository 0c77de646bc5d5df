"""Memory of one rank at its fullest, when the backward pass begins.

What a layer keeps for its backward pass is read off the cells of `pangu_sigma.model`: inputs of matmuls, norms and
activation functions, softmax's output; not what a gradient does without (sums, permutations, the residual stream
between norms).

Shape legend: B rows, S positions, T = B * S tokens, d hidden size, f inner features, V words, P tensor-parallel ranks,
E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional, Sequence

from locmoe_ops.collectives.registry import purpose_of
from pangu_sigma.config.derived import recomputed_parts
from pangu_sigma.model.parameter_groups import reads_copy
from pangu_sigma.planner.exchanges import (
    UPDATE,
    Exchange,
    early_messages,
    shares_experts,
    shares_state,
    step_exchanges,
    stretches,
)
from pangu_sigma.planner.hardware import Hardware
from pangu_sigma.planner.job import ITEM, PlannedJob, layer_slots
from pangu_sigma.planner.parameters import parameters

GB, MB = 1e9, 1e6
_FLASH_NUMBERS = 16  # that FlashAttentionScore keeps of each row of scores: its largest and its sum, eight times each


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank.

    Attributes:
        parameters: float32.
        optimizer: both moments; of what is shared out over ranks, the weights that are being updated too.
        gradients: accumulators included, where a step has several micro-batches.
        half_copies: parameters once more in the matmuls' own type, where that is not float32.
        activations, recomputed: kept for the backward pass as `train.recompute` has it; the same with `all`.
        dispatch: send, receive and result buffers of one sparse layer on their way.
        working: logits and their gradient, or a bucket of gradients on its way between ranks, whichever is more.
        reserved: runtime, compiled graphs, buffers of process groups.
        fragmentation: share of all tensors that the allocator loses.
        host: of experts that the host updates, weights and both moments, in its memory; no part of `total`.
    """

    parameters: float
    optimizer: float
    gradients: float
    half_copies: float
    activations: float
    recomputed: float
    dispatch: float
    working: float
    reserved: float
    fragmentation: float
    host: float = 0.0

    def _with(self, activations: float) -> float:
        tensors = (
            self.parameters
            + self.optimizer
            + self.gradients
            + self.half_copies
            + activations
            + self.dispatch
            + self.working
        )
        return self.reserved + tensors * (1.0 + self.fragmentation)

    @property
    def total(self) -> float:
        return self._with(self.activations)

    @property
    def total_recomputed(self) -> float:
        return self._with(self.recomputed)

    @property
    def margin(self) -> float:
        """What `total` holds for fragmentation."""
        return (self.total - self.reserved) * self.fragmentation / (1.0 + self.fragmentation)


def rank_memory(job: PlannedJob, hardware: Hardware) -> RankMemory:
    """What one rank of `job` needs on that `hardware`."""
    memory, found, layers = hardware.memory, parameters(job), layer_activations(job)
    own, own_experts = ITEM * sum(p.size for p in found), ITEM * sum(p.size for p in found if p.expert)
    matrices = sum(p.size for p in found if len(p.shape) > 1)
    exchanges = step_exchanges(job)
    # Each has buffers of its own: as many as sets of ranks and purposes (see `HcclCollectives`).
    groups = len({(job.topology.group_of(e.group, 0), purpose_of(e.group, e.cause)) for e in exchanges})
    buffer_mb = job.config.runtime.hccl.buffer_mb
    group_mb = memory.per_group_mb.value if buffer_mb is None else 2.0 * buffer_mb
    held, every = memory.activation_factor.value, ("all",) * len(layers)
    dispatch = 0.0
    if job.sparse_layers:
        # Of one of them: send and receive buffers, of tokens and of results; and of copies on the rail.
        rows = expert_rows(job) + copied_rows(job)
        dispatch = 4.0 * job.compute_item * rows * job.config.model.hidden_size
        dispatch += _gathered_bytes(job, exchanges)
    # Of hosted experts, the weights and both moments (see `pangu_sigma.train.offloaded_experts`).
    hosted = 3 * own_experts if job.config.optimizer.expert_state != "device" else 0
    return RankMemory(
        parameters=own,
        optimizer=optimizer_bytes(job),
        gradients=own + (_of_micro_batch(job) if job.micro_batches > 1 else 0),
        half_copies=job.compute_item * matrices if job.compute_item < ITEM else 0,
        activations=peak(layer_memory(job)) * held,
        recomputed=peak(layer_memory(job, every)) * held,
        dispatch=dispatch,
        working=_working(job, exchanges),
        reserved=memory.reserved_gb.value * GB + (len(layers) * memory.per_layer_mb.value + groups * group_mb) * MB,
        fragmentation=memory.fragmentation.value,
        host=hosted,
    )


def _of_micro_batch(job: PlannedJob) -> int:
    """Gradients of one of several micro-batches, beside the accumulators: of copies in their own type."""
    return sum((job.compute_item if reads_copy(p.name) else ITEM) * p.size for p in parameters(job))


def _gathered_bytes(job: PlannedJob, exchanges: Sequence[Exchange]) -> int:
    """What all ranks have sent, on each of them, where tokens are gathered: of all chunks, which start together."""
    if job.config.parallel.all_to_all != "gathered":
        return 0
    tokens = [e for e in exchanges if e.cause == "all_to_all" and e.operation == "all_gather" and e.group != "tp"]
    sizes = [e.elements * e.item * job.topology.group_size(e.group) for e in tokens]
    return max(sizes, default=0) * job.config.moe.dispatch.chunks


def optimizer_bytes(job: PlannedJob) -> int:
    """Optimizer state in the compiled step of one rank (see `pangu_sigma.train.sharding`)."""
    numbers = 0
    for expert, shared in ((False, shares_state(job)), (True, shares_experts(job))):
        if shared:
            numbers += 3 * sum(stretch.size for stretch in stretches(job, expert))
        elif not (expert and job.config.optimizer.expert_state != "device"):
            numbers += 2 * sum(p.size for p in parameters(job) if p.expert == expert)
    return ITEM * numbers


class LayerMemory(NamedTuple):
    """Bytes of a layer: what it keeps from its forward pass until its backward pass begins, and the most that there is
    of it then, when one of its halves has been computed anew.
    """

    kept: float
    whole: float


def layer_memory(job: PlannedJob, parts: Optional[Sequence[str]] = None) -> list[LayerMemory]:
    """Of each layer, the query layer last.

    Args:
        job: of the layers.
        parts: what is recomputed of each; None: as `train.recompute` has it.
    """
    row, found = _row_bytes(job), []
    for index, (part, all_of_it) in enumerate(zip(parts or recomputed_parts(job.config), layer_activations(job))):
        if part == "none":
            found.append(LayerMemory(all_of_it, all_of_it))
            continue
        # Of the attention remains what its norm reads; in the query layer also what asks, before it is cast, and what
        # the final norm reads.
        asks = _query(job) if index == job.blocks else 0.0
        attention = _attention(job) + (2 * row if asks else 0.0)
        feed_forward = all_of_it - _attention(job) - asks
        kept, anew = row * (3 if asks else 1), feed_forward
        if part == "all" and job.is_sparse(index):
            feed_forward -= 2 * job.compute_item * expert_rows(job) * (job.inner // job.topology.tensor)
            feed_forward -= _shared_inner_bytes(job)
        elif part == "all":
            feed_forward = row
        found.append(LayerMemory(kept + feed_forward, max(kept + anew, attention)))
    return found


def peak(layers: Sequence[LayerMemory]) -> float:
    """The most at a time: when the backward pass begins, or when it has come down to a layer that is recomputed."""
    most, below = sum(layer.kept for layer in layers), 0.0
    for layer in layers:
        most = max(most, below + layer.whole)
        below += layer.kept
    return most


def layer_activations(job: PlannedJob) -> list[float]:
    """Bytes that the backward pass of each layer reads of its forward pass, the query layer last."""
    model, item = job.config.model, job.compute_item
    stream = job.tokens * model.hidden_size  # numbers of the residual stream
    inner = job.inner // job.topology.tensor
    attention = _attention(job)
    # The norm's input and output; the inner features before and after the activation function.
    dense = _row_bytes(job) + item * (stream + 2 * job.tokens * inner)
    # The norm's input and output; the experts' inputs and inner features, by slot; their results, which gates scale.
    sparse = 0.0
    if job.sparse_layers:
        results = stream * job.config.moe.router.top_k
        sparse = 2 * _row_bytes(job) + item * (expert_rows(job) * (model.hidden_size + 2 * inner) + results)
        sparse += _shared_inner_bytes(job)
        if job.shared_inner and item < ITEM:
            sparse += item * stream  # what shared experts read; in float32 that is the norm's output itself
    blocks = [attention + (sparse if index >= model.dense_layers else dense) for index in range(job.blocks)]
    return [*blocks, attention + (sparse if model.sparse_query_layer else dense) + _query(job)]


def _shared_inner_bytes(job: PlannedJob) -> int:
    """Inner features of shared experts before and after the activation function."""
    return 2 * job.compute_item * job.tokens * (job.shared_inner // job.topology.tensor)


def _query(job: PlannedJob) -> float:
    """The final norm's input, and the learned queries."""
    return _row_bytes(job) + job.compute_item * job.tokens * job.config.model.hidden_size


def _attention(job: PlannedJob) -> float:
    """The norm's input and output; queries, keys, values and what heads found; scores."""
    numbers = job.compute_item * job.tokens * job.config.model.hidden_size
    return _row_bytes(job) + numbers + 4 * numbers // job.topology.tensor + _scores(job)


def _scores(job: PlannedJob) -> float:
    """The probabilities of all heads, unless a fused kernel does without."""
    model, item = job.config.model, job.compute_item
    scores = job.rows * model.num_heads // job.topology.tensor * model.sequence_length**2
    if job.config.runtime.fused.attention:
        return scores // model.sequence_length * _FLASH_NUMBERS * ITEM
    return scores * (ITEM + (item if item < ITEM else 0) + (item if model.attention_dropout else 0))


def copied_rows(job: PlannedJob) -> int:
    """Rows that travel along the rail of one sparse layer before they are expanded into rows of experts, or 0."""
    return layer_slots(job).copies * job.topology.group_size(f"{job.exchange.group}_rail")


def expert_rows(job: PlannedJob) -> int:
    """Rows that a rank's experts have room for in one sparse layer, filled or not."""
    slots = layer_slots(job)
    return slots.rows_of_all or job.experts_per_rank * slots.expert_rows


def _row_bytes(job: PlannedJob) -> float:
    """The residual stream, float32."""
    return ITEM * job.tokens * job.config.model.hidden_size


def _working(job: PlannedJob, exchanges: Sequence[Exchange]) -> float:
    """See `RankMemory`."""
    item, parts = job.compute_item, job.topology.tensor
    # Logits, probabilities and gradient of the loss; gradients of the widest layer's inner features.
    loss = job.tokens * job.words // parts * (3 * ITEM + (2 * item if item < ITEM else 0))
    loss += 2 * item * job.tokens * max(job.inner, job.shared_inner) // parts
    # The largest bucket of gradients: put together, summed, and cut again; 0 on one rank. The tcp backend has buffers
    # for early ones, where hccl's sums take the gradients' own place.
    buckets = [e.elements for e in exchanges if e.cause == "gradient" and e.phase == UPDATE]
    early = sum(early_messages(job)) if job.backend == "tcp" else 0
    return max(loss, float(ITEM * (early + 3 * max(buckets, default=0))))
