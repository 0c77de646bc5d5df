"""Locality in the selection: experts on a token's own node are preferred when it picks its experts. Ours, beyond the papers.

Parameters are shared by data parallelism, so where all nodes see the same data a loss can only pull their routers in opposite
directions, which cancel. A term that depends on the token's home does not cancel: it acts on the choice and on nothing that is
shared. The gate weight stays the expert's own probability and gradients keep their form.

Home and locality refer to the given layout, never to the processes that run, so one process computes what many would.

Shape legend: T tokens of this rank, n experts of a group, G groups, V nodes.
"""

from typing import Iterator, Optional, Protocol

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import RoutingShape, local_experts_of_nodes
from locmoe_ops.routers.preference import Preference
from locmoe_ops.topology import ExpertPlacement, Topology

LOCAL_TERMS = ("bias", "margin")


class LocalExperts(nn.Cell):
    """Which experts of a token's group are on its home node.

    Inputs: home <int32>[T], ranks of `layout`; group <int32>[T]. Output: <float32>[T, n], 1 for those, 0 for the others.
    """

    def __init__(self, shape: RoutingShape, layout: Topology, placement: ExpertPlacement) -> None:
        super().__init__()
        self.num_groups = shape.num_groups
        self.ranks_per_node = layout.ranks_per_node
        self.table = Tensor(local_experts_of_nodes(layout, placement).reshape(-1, shape.per_group))  # (V*G, n)

    def construct(self, home: Tensor, group: Tensor) -> Tensor:
        return ops.gather(self.table, ops.floor_div(home, self.ranks_per_node) * self.num_groups + group, 0)


class LocalTerm(Preference):
    """What a pick is made by, with local experts preferred.

    `bias`: strength is added to a local expert's probability. It wins where it lacks less than `strength` to the best.
    `margin`: a local expert wins where its probability exceeds (1 - strength) times the best one's; among several, the likeliest.
    At strength 0 both leave every choice as it is. At strength 1 a token stays at home if its node has an expert for it, unless
    that one's probability vanishes beside the best one's in float32.

    Args:
        kind: `bias` or `margin`. strength: in [0, 1], until `set_local_strength` changes it. It is a parameter that no
            optimizer touches, so that a schedule needs no new graph and a checkpoint keeps what the run was trained with.

    Inputs and output: as `Preference`.
    """

    def __init__(self, kind: str, shape: RoutingShape, layout: Topology, placement: ExpertPlacement, strength: float = 0.0) -> None:
        super().__init__()
        if kind not in LOCAL_TERMS:
            raise InputError(f"local_term: found '{kind}', expected one of {', '.join(LOCAL_TERMS)}")
        self.by_margin = kind == "margin"
        self.local = LocalExperts(shape, layout, placement)
        self.local_strength = Parameter(Tensor(_checked(strength), dtype.float32), name="local_strength", requires_grad=False)

    def construct(self, rest: Tensor, home: Tensor, group: Tensor) -> Tensor:
        local = self.local(home, group)
        if not self.by_margin:
            return rest + self.local_strength * local
        best = rest.max(-1, keepdims=True)
        near_enough = ops.cast(rest > (1.0 - self.local_strength) * best, dtype.float32)  # none at strength 0
        return rest + 2.0 * near_enough * local


class StrengthSchedule(Protocol):
    """How strength goes from one value to another: linearly, over some steps."""

    @property
    def strength(self) -> float:
        """From step start_step + warmup_steps on."""

    @property
    def initial_strength(self) -> float:
        """Up to start_step."""

    @property
    def start_step(self) -> int:
        """Last step of the initial strength."""

    @property
    def warmup_steps(self) -> int:
        """Steps of the way; 0: a jump after start_step."""


def local_strength(step: int, schedule: StrengthSchedule) -> float:
    """Strength of the local term in optimizer step `step`, counted from 1."""
    if step <= schedule.start_step:
        return schedule.initial_strength
    done = min(1.0, (step - schedule.start_step) / max(1, schedule.warmup_steps))
    return schedule.initial_strength + done * (schedule.strength - schedule.initial_strength)


def set_local_strength(network: nn.Cell, value: float) -> None:
    """Sets the strength of every local term in `network`; 0 turns them off. Compiled graphs stay valid.

    Raises InputError for a value outside [0, 1].
    """
    strength = _checked(value)
    for term in local_terms(network):
        term.local_strength.set_data(Tensor(strength, dtype.float32))


def current_strength(network: nn.Cell) -> Optional[float]:
    """The strength of the local terms in `network`, as last set; None where there are none."""
    strengths = [float(term.local_strength.asnumpy()) for term in local_terms(network)]
    return strengths[0] if strengths else None


def local_terms(network: nn.Cell) -> Iterator[LocalTerm]:
    """The local terms of all routers in `network`."""
    return (cell for _, cell in network.cells_and_names() if isinstance(cell, LocalTerm))


def _checked(strength: float) -> np.float32:
    if not 0.0 <= strength <= 1.0:
        raise InputError(f"local_term: strength is {strength}, expected 0 to 1")
    return np.float32(strength)
