"""What follows from the keys of a configuration, each rule once. Needs no MindSpore.

Where a number of ranks plays a part, `data_ranks` is that of data-parallel ranks: those that read rows of their own
(`Topology.data`), a tensor-parallel group being one.
"""

from typing import Tuple

from locmoe_ops.topology import Topology
from pangu_sigma.config.schema import Config


def job_topology(config: Config, world_size: int) -> Topology:
    """Which of `world_size` ranks sits where: all on one node unless the configuration says otherwise."""
    parallel = config.parallel
    return Topology(world_size, parallel.ranks_per_node or world_size, parallel.expert, parallel.tensor)


def resolve_layout(config: Config, topology: Topology) -> Topology:
    """`moe.logical_topology` where given, else the topology of the job, in which a tensor-parallel group is one place:
    its ranks hold the same rows.
    """
    given = config.moe.logical_topology
    if given is not None:
        return Topology(given.world_size, given.ranks_per_node, given.expert)
    tensor = topology.tensor
    return topology if tensor == 1 else Topology(topology.data, topology.ranks_per_node // tensor, topology.expert)


def ffn_hidden_size(config: Config) -> int:
    """f: inner width of a dense feed-forward network and of an expert, over all ranks of a tensor-parallel group."""
    return config.model.ffn_hidden_size or 4 * config.model.hidden_size


def num_blocks(config: Config) -> int:
    """Decoder blocks below the query layer."""
    return config.model.dense_layers + config.model.sparse_layers


def num_sparse_layers(config: Config) -> int:
    """Layers with experts, the query layer's included."""
    return config.model.sparse_layers + config.model.sparse_query_layer


def recomputed_parts(config: Config) -> Tuple[str, ...]:
    """What the backward pass computes anew of each layer, bottom up, the query layer last: `none` of it, its
    `attention`, or `all` (see `train.recompute`).
    """
    asked, model = config.train.recompute, config.model
    sparse = (False,) * model.dense_layers + (True,) * model.sparse_layers + (model.sparse_query_layer,)
    if isinstance(asked, int):
        return tuple("all" if index < asked else "none" for index in range(len(sparse)))
    if asked == "sparse":
        return tuple("all" if with_experts else "none" for with_experts in sparse)
    return (asked,) * len(sparse)


def has_experts(config: Config) -> bool:
    """True if any layer is sparse; without one, `moe` settings are of no consequence."""
    return num_sparse_layers(config) > 0


def experts_per_group(config: Config) -> int:
    """Experts that a token may be sent to: those of its domain's group."""
    return config.moe.num_experts // config.moe.num_groups


def num_word_tables(config: Config, domains: int) -> int:
    """Word tables of a network whose data has so many `domains`."""
    return domains if config.model.domain_embeddings else 1


def micro_batch_sequences(config: Config, data_ranks: int) -> int:
    """Sequences of a micro-batch on each rank; 1 where there are fewer sequences in a step than `data_ranks`."""
    return config.train.micro_batch_size or max(1, config.train.global_batch_size // data_ranks)


def micro_batches_per_step(config: Config, data_ranks: int) -> int:
    """Micro-batches of a rank in an optimizer step."""
    return config.train.global_batch_size // (micro_batch_sequences(config, data_ranks) * data_ranks)


def tokens_per_step(config: Config) -> int:
    """Tokens of an optimizer step, over all ranks."""
    return config.train.global_batch_size * config.model.sequence_length


def last_step(config: Config) -> int:
    """After which a run ends, if nothing else ends it."""
    return min(config.train.steps, config.train.stop_after or config.train.steps)
