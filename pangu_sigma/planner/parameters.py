"""Parameters by closed form: every tensor of the network that `pangu_sigma.model` would build, without building it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterator

from pangu_sigma.planner.job import PlannedJob

_NOT_DECAYING = ("b_", "bias", "gamma", "beta")  # how names of biases and norms begin


@dataclass(frozen=True)
class PlannedParameter:
    """A trainable tensor. `shape`: what one rank holds of it; `parts`: different parts over all ranks, each of that
    shape; `split`: whether the ranks of a tensor-parallel group hold a part each.
    """

    name: str
    shape: tuple[int, ...]
    parts: int = 1
    expert: bool = False
    split: bool = False

    @property
    def size(self) -> int:
        """Numbers that one rank holds."""
        return math.prod(self.shape)

    @property
    def total(self) -> int:
        """Numbers in the model."""
        return self.size * self.parts

    @property
    def decays(self) -> bool:
        return not self.name.rsplit(".", 1)[-1].startswith(_NOT_DECAYING)

    @property
    def is_map(self) -> bool:
        """True for weights of attention and dense feed-forward networks, whose gradients may set out during the
        backward pass.
        """
        return self.name.endswith(".weight") and ".router." not in self.name


@dataclass(frozen=True)
class Counts:
    """`total`: of the model; `active`: of these, what one token passes through; `rank`: what one rank holds; `experts`
    and
    `rank_experts`: of total and rank, what is in experts.
    """

    total: int
    active: int
    experts: int
    rank: int
    rank_experts: int


def count_parameters(job: PlannedJob) -> Counts:
    """Counts of trainable numbers. A token passes through `top_k` experts of each sparse layer and one slot of the word
    table.
    """
    found = parameters(job)
    total, experts = sum(p.total for p in found), sum(p.total for p in found if p.expert)
    moe, word = job.config.moe, found[0]
    idle_words = word.total - word.total // job.word_slots
    active = total - experts - idle_words + experts // moe.num_experts * moe.router.top_k
    return Counts(total, active, experts, sum(p.size for p in found), sum(p.size for p in found if p.expert))


def parameters(job: PlannedJob) -> list[PlannedParameter]:
    """All trainable tensors in the network's own order, the word table first."""
    model, tensor = job.config.model, job.topology.tensor
    d, length = model.hidden_size, model.sequence_length
    found = [
        PlannedParameter("embedding.word", (job.word_slots * job.words // tensor, d), tensor, split=tensor > 1),
        PlannedParameter("embedding.position", (length, d)),
    ]
    for index in range(job.blocks):
        found += _block(job, f"blocks.{index}", index >= model.dense_layers)
    found += _norm(job, "final_norm")
    found.append(PlannedParameter("query_layer.top_query", (length, d)))
    return found + list(_block(job, "query_layer", model.sparse_query_layer))


def in_gradient_order(found: list[PlannedParameter]) -> list[PlannedParameter]:
    """Weights of linear maps as the backward pass comes by them, then other dense parameters, then experts; in the last
    two the decaying ones first, and of these those that are whole (see
    `pangu_sigma.model.parameter_groups.ordered_parameters`).
    """
    rest = sorted((p for p in found if not p.is_map), key=lambda p: (p.expert, not p.decays, p.split))
    return [p for p in found if p.is_map][::-1] + rest


def _block(job: PlannedJob, name: str, sparse: bool) -> Iterator[PlannedParameter]:
    d, inner = job.config.model.hidden_size, job.inner
    yield from _norm(job, f"{name}.attention_norm")
    for part in ("query", "key", "value"):
        yield from _map(job, f"{name}.attention.{part}", d, d, split=0, bias=part != "key")
    yield from _map(job, f"{name}.attention.project", d, d, split=1)
    yield from _norm(job, f"{name}.ffn_norm")
    if sparse:
        yield from _sparse_layer(job, f"{name}.feed_forward")
        return
    yield from _map(job, f"{name}.feed_forward.w_in", inner, d, split=0)
    yield from _map(job, f"{name}.feed_forward.w_out", d, inner, split=1)


def _norm(job: PlannedJob, name: str) -> list[PlannedParameter]:
    return [PlannedParameter(f"{name}.{part}", (job.config.model.hidden_size,)) for part in ("gamma", "beta")]


def _map(
    job: PlannedJob, name: str, rows: int, columns: int, split: int, bias: bool = True
) -> Iterator[PlannedParameter]:
    """A linear map whose rows (0) or columns (1) a tensor-parallel group shares out; with its rows goes the bias."""
    tensor = job.topology.tensor
    shape = (rows // tensor, columns) if split == 0 else (rows, columns // tensor)
    yield PlannedParameter(f"{name}.weight", shape, tensor, split=tensor > 1)
    if bias:
        yield PlannedParameter(f"{name}.bias", shape[:1], tensor if split == 0 else 1, split=split == 0 and tensor > 1)


def _sparse_layer(job: PlannedJob, name: str) -> Iterator[PlannedParameter]:
    config, topology = job.config, job.topology
    d, count = config.model.hidden_size, job.experts_per_rank
    inner, parts = job.inner // topology.tensor, topology.expert * topology.tensor
    for weight, shape in job.router_cost.weights.items():
        yield PlannedParameter(f"{name}.routing.router.{weight}", shape)
    for part, shape, held in (
        ("w_in", (count, d, inner), parts),
        ("b_in", (count, 1, inner), parts),
        ("w_out", (count, inner, d), parts),
        ("b_out", (count, 1, d), topology.expert),
    ):
        yield PlannedParameter(f"{name}.experts.{part}", shape, held, expert=True, split=held > topology.expert)
