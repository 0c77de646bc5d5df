"""How many kernels an optimizer step would launch on Ascend, kernel by kernel (O0).

The numbers are counted in exported graphs, not on a device (`pangu-sigma audit --kernels`);
`tests/distributed/test_kernels.py` compares them with graphs of the shipped 38B shape. Other routers and dispatchers
cost some tens more or less a sparse layer. Not counted: what `runtime.fused.accumulate` saves.
"""

from __future__ import annotations

from locmoe_ops.router_registry import router_spec
from pangu_sigma.config.ascend import flattens
from pangu_sigma.config.derived import has_experts, layer_routers, recomputed_parts
from pangu_sigma.config.schema import RouterConfig
from pangu_sigma.model.parameter_groups import reads_copy
from pangu_sigma.planner.exchanges import shares_experts, shares_state, stretches
from pangu_sigma.planner.job import ITEM, PlannedJob
from pangu_sigma.planner.parameters import parameters

DENSE_LAYER = 63  # attention and a dense feed-forward network, forward and backward
SPARSE_LAYER = 160  # attention and experts in one chunk
CHUNK = 34  # of each further one: its exchanges and its products
# More of a sparse layer whose tokens have several experts: their copies and sums, then what a gate takes to find each
# further choice and what losses and counts make of it, forward and backward.
SEVERAL, CHOICE = 19, 4
PLAIN_ATTENTION = 22  # more, without the fused kernel: scores, softmax, and transposed heads
OUTSIDE = 95  # of the layers: embedding, mask, head, loss, statistics
# Again, where they are recomputed (`train.recompute`): attention and its norm; a dense feed-forward network and its
# norm; experts, in each chunk.
ATTENTION_AGAIN, FEED_FORWARD_AGAIN, CHUNK_AGAIN = 8, 4, 3
CONVERSION = 1  # for each tensor that is read in half precision, in a step of one micro-batch
COPY = 2  # for each such tensor, once a step where it has several: converted and kept
ACCUMULATION = 1  # for each tensor, where a step has several micro-batches
EMPTIED = 1  # for each accumulator
UPDATE = 6  # for each tensor that is updated by itself: cut out of what was summed over ranks; its norm, clipping, Adam
IN_VECTOR = 3  # for each that is updated in a vector (`optimizer.flat`): cut out twice, and its new value
IN_STRETCH = 4  # for each that ranks share out (`optimizer.zero`)
VECTOR = 10  # for each vector or stretch: put together, gradients and weights; its norm, clipping, Adam


def micro_batch_launches(job: PlannedJob) -> int:
    """Kernels of a rank for the forward and backward pass of one micro-batch of `job`."""
    config = job.config
    layers = job.dense_layers * DENSE_LAYER + job.sparse_layers * SPARSE_LAYER
    layers += job.sparse_layers * (config.moe.dispatch.chunks - 1) * CHUNK
    if has_experts(config) and config.moe.router.top_k > 1:
        layers += job.sparse_layers * SEVERAL
        layers += sum(map(chooses, layer_routers(config))) * (config.moe.router.top_k - 1) * CHOICE
    if not config.runtime.fused.attention:
        layers += (job.blocks + 1) * PLAIN_ATTENTION
    for index, part in enumerate(recomputed_parts(config)):  # these stand once more
        if part != "none":
            layers += ATTENTION_AGAIN
        if part == "all":
            layers += CHUNK_AGAIN * config.moe.dispatch.chunks if job.is_sparse(index) else FEED_FORWARD_AGAIN
    several = job.micro_batches > 1
    upkeep = ACCUMULATION * len(parameters(job)) if several else CONVERSION * _tensors_in_half(job)
    return OUTSIDE + layers + upkeep


def chooses(router: RouterConfig) -> bool:
    """Whether a layer's `router` finds a token's experts one after the other, and not in a table."""
    spec = router_spec(router.type)
    return spec.map_of_ids(router.own) is None and not spec.whole_rows


def step_launches(job: PlannedJob) -> int:
    """Kernels of a rank in an optimizer step of `job`."""
    copies = COPY * _tensors_in_half(job) if job.micro_batches > 1 else 0
    return job.micro_batches * micro_batch_launches(job) + copies + update_launches(job)


def update_launches(job: PlannedJob) -> int:
    """Kernels of a rank for the update of `job`, once a step, without the sums over ranks."""
    found, each = parameters(job), IN_STRETCH if shares_state(job) else IN_VECTOR
    if shares_state(job):
        in_vectors = [one for one in found if not one.expert or shares_experts(job)]
        vectors = len(stretches(job, False)) + (len(stretches(job, True)) if shares_experts(job) else 0)
    else:
        small = [one for one in found if flattens(job.config, job.topology.data) and not one.decays]
        in_vectors = [one for one in small if not one.expert or job.config.optimizer.expert_state == "device"]
        vectors = len({(one.expert, one.split) for one in in_vectors})
    emptied = EMPTIED * len(found) if job.micro_batches > 1 else 0
    return emptied + UPDATE * (len(found) - len(in_vectors)) + each * len(in_vectors) + VECTOR * vectors


def _tensors_in_half(job: PlannedJob) -> int:
    """Parameters that products read in half precision."""
    return sum(reads_copy(one.name) for one in parameters(job)) if job.compute_item < ITEM else 0
