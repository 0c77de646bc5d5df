"""Parameters by closed form: every tensor of the network that `pangu_sigma.model` would build, without building it.

What kind a parameter is, and which axis of it a tensor-parallel group splits, follows from its name
(`pangu_sigma.model.parameter_groups`); here stand the names and the whole shapes.

Shape legend: d hidden size, f inner features, S positions, V words, L experts of a rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Iterator

from locmoe_ops.router_registry import RouterCost
from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.model.parameter_groups import (
    decays,
    is_expert_parameter,
    is_map_weight,
    ordered_parameters,
    split_axis,
)
from pangu_sigma.planner.job import PlannedJob


@dataclass(frozen=True)
class PlannedParameter:
    """A trainable tensor.

    Attributes:
        name: the one that the network gives it.
        shape: what one rank holds of it.
        shard: the part that the first rank of a tensor-parallel group holds; None: every rank holds the whole.
        copies: ranks with values of their own, apart from tensor parallelism: all of an expert-parallel group for
            an expert bank, else 1.
    """

    name: str
    shape: tuple[int, ...]
    shard: ShardSpec | None = None
    copies: int = 1

    @cached_property
    def size(self) -> int:
        """Numbers that one rank holds."""
        return math.prod(self.shape)

    @property
    def total(self) -> int:
        """Numbers in the model."""
        whole = self.shape if self.shard is None else self.shard.whole_shape(self.shape)
        return math.prod(whole) * self.copies

    @cached_property
    def expert(self) -> bool:
        return is_expert_parameter(self.name)

    @cached_property
    def decays(self) -> bool:
        return decays(self.name)

    @cached_property
    def is_map(self) -> bool:
        """True where the gradient may be sent during the backward pass."""
        return is_map_weight(self.name)

    @property
    def split(self) -> bool:
        """True where the ranks of a tensor-parallel group hold a part each."""
        return self.shard is not None


@dataclass(frozen=True)
class Counts:
    """Trainable numbers.

    Attributes:
        total: of the model. active: of these, what one token passes through. experts: of these, what is in experts.
        rank: what one rank holds. rank_experts: of these, what is in experts.
    """

    total: int
    active: int
    experts: int
    rank: int
    rank_experts: int


def count_parameters(job: PlannedJob) -> Counts:
    """Counts of trainable numbers. Of each sparse layer a token passes through `top_k` experts and all shared ones, and
    through one slot of the word table.
    """
    found = parameters(job)
    total, experts = sum(p.total for p in found), sum(p.total for p in found if p.expert)
    moe, word = job.config.moe, found[0]
    idle_words = word.total - word.total // job.word_slots
    active = total - experts - idle_words + experts // moe.num_experts * moe.router.top_k
    return Counts(total, active, experts, sum(p.size for p in found), sum(p.size for p in found if p.expert))


@lru_cache(maxsize=4)  # a job's parts ask for them some twenty times
def parameters(job: PlannedJob) -> tuple[PlannedParameter, ...]:
    """All trainable tensors in the network's own order, the word table first."""
    found, tensor = [], job.topology.tensor
    for name, whole in _whole_shapes(job):
        axis = split_axis(name)
        shard = None if axis is None or tensor == 1 else ShardSpec(axis, 0, tensor)
        copies = job.topology.expert if is_expert_parameter(name) else 1
        found.append(PlannedParameter(name, whole if shard is None else shard.shape_of(whole), shard, copies))
    return tuple(found)


@lru_cache(maxsize=4)
def in_gradient_order(job: PlannedJob) -> tuple[PlannedParameter, ...]:
    """See `pangu_sigma.model.parameter_groups.ordered_parameters`."""
    return tuple(ordered_parameters(parameters(job), attrgetter("shard")))


_Shapes = Iterator[tuple[str, tuple[int, ...]]]  # name, and shape without tensor parallelism


def _whole_shapes(job: PlannedJob) -> _Shapes:
    model = job.config.model
    d, length = model.hidden_size, model.sequence_length
    yield "embedding.word", (job.word_slots * job.words, d)
    yield "embedding.position", (length, d)
    costs = iter(job.router_costs)
    for index in range(job.blocks):
        yield from _block(job, f"blocks.{index}", next(costs) if index >= model.dense_layers else None)
    yield from _norm(job, "final_norm")
    yield "query_layer.top_query", (length, d)
    yield from _block(job, "query_layer", next(costs) if model.sparse_query_layer else None)


def _block(job: PlannedJob, name: str, router: RouterCost | None) -> _Shapes:
    """`router`: of a block with experts; None: it is dense."""
    d, f, held = job.config.model.hidden_size, job.inner, job.experts_per_rank
    yield from _norm(job, f"{name}.attention_norm")
    for part in ("query", "key", "value", "project"):
        yield f"{name}.attention.{part}.weight", (d, d)
        if part != "key":  # a bias of the keys changes no attention
            yield f"{name}.attention.{part}.bias", (d,)
    yield from _norm(job, f"{name}.ffn_norm")
    if router is not None:
        for weight, shape in router.weights.items():
            yield f"{name}.feed_forward.routing.router.{weight}", shape
        for part, shape in {
            "w_in": (held, d, f),
            "b_in": (held, 1, f),
            "w_out": (held, f, d),
            "b_out": (held, 1, d),
        }.items():
            yield f"{name}.feed_forward.experts.{part}", shape
        if job.shared_inner:
            yield from _feed_forward(f"{name}.feed_forward.shared_experts", d, job.shared_inner)
    else:
        yield from _feed_forward(f"{name}.feed_forward", d, f)


def _feed_forward(name: str, d: int, f: int) -> _Shapes:
    for part, rows, columns in (("w_in", f, d), ("w_out", d, f)):
        yield f"{name}.{part}.weight", (rows, columns)
        yield f"{name}.{part}.bias", (rows,)


def _norm(job: PlannedJob, name: str) -> _Shapes:
    yield from ((f"{name}.{part}", (job.config.model.hidden_size,)) for part in ("gamma", "beta"))
