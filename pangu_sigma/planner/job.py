"""What is planned: a configuration on so many ranks, with every `null` resolved, and the slots and exchanges of a
sparse layer, as the job's dispatcher has them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from locmoe_ops.dispatch.geometry import DispatchExchange, LayerSlots, gateway_exchanges, share_exchanges
from locmoe_ops.dispatch.registry import dispatcher_spec
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterCost
from locmoe_ops.topology import Placement, Topology
from pangu_sigma.config import derived
from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.check_chip import check_all_to_all
from pangu_sigma.config.chips import known_chip, reads_status
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate
from pangu_sigma.data.domains import check_domains, resolve_domain_groups
from pangu_sigma.data.manifest import NAME, read_manifest
from pangu_sigma.data.placement import check_placement
from pangu_sigma.model.capacity_rules import SlotRules, resolve_layout

ITEM = 4  # bytes of float32: parameters, gradients, states, and whatever does not take part in matmuls


@dataclass(frozen=True, eq=False)  # itself a key of what is derived from it once
class PlannedJob:
    """A configuration that `plan_job` has checked.

    Attributes:
        config: with `parallel.ranks_per_node` as planned.
        topology: of its ranks.
        words, domains: rows of one slot of the word table, and the data's domains.
    """

    config: Config
    topology: Topology
    words: int
    domains: int

    @property
    def rows(self) -> int:
        """Rows of a rank's micro-batch."""
        return derived.micro_batch_sequences(self.config, self.topology.data)

    @property
    def tokens(self) -> int:
        """T: tokens of a rank's micro-batch."""
        return self.rows * self.config.model.sequence_length

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a rank in an optimizer step."""
        return derived.micro_batches_per_step(self.config, self.topology.data)

    @property
    def global_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return derived.tokens_per_step(self.config)

    @property
    def compute_item(self) -> int:
        """Bytes of a number that enters matmuls."""
        return ITEM if self.config.runtime.precision == "fp32" else 2

    @property
    def gradient_item(self) -> int:
        """Bytes of a number of a gradient on its way to its sum over ranks."""
        return ITEM if self.config.parallel.reduce_precision == "fp32" else 2

    @property
    def inner(self) -> int:
        """f: inner features of a feed-forward network, over all ranks of a tensor-parallel group."""
        return derived.ffn_hidden_size(self.config)

    @property
    def shared_inner(self) -> int:
        """Inner features of the shared experts of a sparse layer, as `inner`; 0 where there are none."""
        return derived.shared_ffn_hidden_size(self.config)

    @property
    def blocks(self) -> int:
        """Decoder blocks below the query layer."""
        return derived.num_blocks(self.config)

    @property
    def sparse_layers(self) -> int:
        """M: feed-forward networks with experts, the query layer's included."""
        return derived.num_sparse_layers(self.config)

    @property
    def dense_layers(self) -> int:
        """Dense feed-forward networks, the query layer's included."""
        return self.blocks + 1 - self.sparse_layers

    def is_sparse(self, index: int) -> bool:
        """Whether the layer at `index`, the query layer being the last, has experts."""
        model = self.config.model
        return model.sparse_query_layer if index == self.blocks else index >= model.dense_layers

    @property
    def experts_per_rank(self) -> int:
        """L: experts that a rank holds of each sparse layer."""
        return self.config.moe.num_experts // self.topology.expert

    @cached_property
    def exchange(self) -> Placement:
        """Experts on the ranks among which the first rank exchanges tokens; those of other ranks are as many."""
        return self.slot_rules.exchange_of(0)

    @property
    def word_slots(self) -> int:
        """Copies of the word table: one a domain, or one for all."""
        return derived.num_word_tables(self.config, self.domains)

    @property
    def backend(self) -> str:
        """Of the collectives: hccl or tcp."""
        return resolve_runtime(self.config).runtime.backend

    @property
    def reads_status(self) -> bool:
        """Whether the step asks its device's status register for overflows."""
        runtime = self.config.runtime
        return reads_status(known_chip(runtime.chip), runtime.precision, os.environ)

    @cached_property
    def router_costs(self) -> tuple[RouterCost, ...]:
        """What each sparse layer's router costs, bottom up."""
        return derived.router_costs(self.config)

    @cached_property
    def slot_rules(self) -> SlotRules:
        """The rules by which slots are shared out to experts."""
        return SlotRules(self.config, self.topology, self.domains, self.tokens)


def plan_job(config: Config, nodes: int, ranks_per_node: int) -> PlannedJob:
    """The job of `config` on `nodes` of `ranks_per_node` ranks each.

    Raises:
        InputError: the configuration does not fit the ranks, or its vocabulary is not known.
    """
    ranks = nodes * ranks_per_node
    placed = replace(config, parallel=replace(config.parallel, ranks_per_node=ranks_per_node))
    validate(placed, ranks)
    parallel = placed.parallel
    topology = Topology(ranks, ranks_per_node, parallel.expert, parallel.tensor)
    words, domains = _vocabulary(placed, resolve_layout(placed, topology).nodes)
    if words % placed.parallel.tensor:
        raise InputError(
            f"parallel.tensor ({placed.parallel.tensor}) does not divide the {words} words of the vocabulary; "
            "expected a divisor"
        )
    job = PlannedJob(placed, topology, words, domains)
    if derived.has_experts(config):  # by now the parts that domains make of the group are known
        exchanged = [one for one in layer_exchanges(job) if one.operation.startswith("all_to_all")]
        check_all_to_all(placed, topology, {one.group for one in exchanged})
    return job


def layer_slots(job: PlannedJob, factor: float | None = None) -> LayerSlots:
    """Slots for capacity factor `factor`, by default `planned_factor`."""
    setup = job.slot_rules.dispatch_setup(job.exchange, planned_factor(job) if factor is None else factor)
    return dispatcher_spec(job.config.moe.dispatch.type).slots(setup)


def layer_exchanges(job: PlannedJob) -> list[DispatchExchange]:
    """What one sparse layer exchanges on the way to its experts, and group-wise into and out of them, in a
    micro-batch.
    """
    setup = job.slot_rules.dispatch_setup(job.exchange, planned_factor(job))
    spec = dispatcher_spec(job.config.moe.dispatch.type)
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


def _vocabulary(config: Config, nodes: int) -> tuple[int, int]:
    """Words and domains: as the prepared data says, if there is any, else as the configuration says that it is to be
    prepared. What is known of the data must be such that `data.placement` can place it on the `nodes`.
    """
    model, prepare, folder = config.model, config.data.prepare, Path(config.data.path)
    if (folder / NAME).is_file():
        manifest = read_manifest(folder)
        words, domains = model.vocab_size or manifest.vocab_size, len(manifest.domains)
        check_placement(config.data.placement, nodes, domains, manifest.clusters is not None)
        check_domains(config, domains)
    elif model.vocab_size is None and prepare.tokenizer is not None:
        raise InputError(
            f"model.vocab_size is null, and {config.data.path} holds no data prepared with {prepare.tokenizer}; "
            "expected --set model.vocab_size=N"
        )
    else:
        words, groups = model.vocab_size or prepare.vocab_size, config.moe.domain_groups
        domains = len(prepare.sources) or config.moe.num_groups if groups is None else len(groups)
        if prepare.sources:
            check_placement(config.data.placement, nodes, domains, clusters=True)
            check_domains(config, domains)
    if derived.has_experts(config):
        resolve_domain_groups(config.moe.domain_groups, domains, config.moe.num_groups)
    return words, domains
