"""Which experts the tokens of `bench all-to-all` want: as many each, a skewed share, or those of a routing trace.

Shape legend: T tokens of a rank, k choices a token, E experts.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Protocol, Union

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes
from locmoe_ops.routing_trace import RoutingTrace, check_fits, read_trace

OPTION, LAYER_OPTION = "--routing", "--layer"
BALANCED = "balanced"
MOST_SKEW = 100.0  # beyond it the second expert has less than a token in 2**100


@dataclass(frozen=True)
class TokensOfRank:
    """The tokens that want experts.

    Attributes:
        tokens: T. top_k: k. experts: E.
        rank, ranks: of the job, whose tokens they are.
    """

    tokens: int
    top_k: int
    experts: int
    rank: int = 0
    ranks: int = 1


class BenchRouting(Protocol):
    """Where the experts of the benchmark's tokens come from."""

    def choices(self, of: TokensOfRank, generator: np.random.Generator) -> np.ndarray:
        """<int32>[T, k]: experts of each token, all different; E where a trace has none.

        Args:
            of: whose tokens they are. generator: of the rank, for what is drawn.
        """
        ...


@dataclass(frozen=True)
class BalancedRouting:
    """Each expert is chosen as often as any other, give or take one for each of the k, so that a
    `moe.dispatch.ragged_limit` of an even load is enough but for that rest.
    """

    def choices(self, of: TokensOfRank, generator: np.random.Generator) -> np.ndarray:
        """See `BenchRouting.choices`: of `of`; `generator` draws the order of tokens."""
        first = generator.permutation(np.arange(of.tokens) * of.experts // of.tokens)
        return ((first[:, None] + np.arange(of.top_k) * (of.experts // of.top_k)) % of.experts).astype(np.int32)


@dataclass(frozen=True)
class SkewedRouting:
    """Zipf's law: the r-th of the experts is wanted with a probability proportional to r ** -`exponent`, and the same
    expert is r-th on all ranks, wherever that is; a token's k experts are drawn without replacement.
    """

    exponent: float

    def choices(self, of: TokensOfRank, generator: np.random.Generator) -> np.ndarray:
        """See `BenchRouting.choices`: of `of`, drawn by `generator`."""
        order = np.random.default_rng(0).permutation(of.experts)
        log_share = np.empty(of.experts)
        log_share[order] = -self.exponent * np.log(np.arange(1, of.experts + 1))
        # The k largest of log p + Gumbel noise are a draw without replacement (Gumbel top-k).
        keys = log_share + generator.gumbel(size=(of.tokens, of.experts))
        return np.argsort(-keys, axis=1, kind="stable")[:, : of.top_k].astype(np.int32)


@dataclass(frozen=True)
class TracedRouting:
    """Experts of a routing trace: its tokens in the order of their home ranks, as many for each rank of the job; where
    a rank wants more, its tokens begin anew.
    """

    path: str
    layer: int = 0

    def choices(self, of: TokensOfRank, generator: np.random.Generator) -> np.ndarray:
        """See `BenchRouting.choices`: of `of`; nothing is drawn by `generator`. Raises InputError for a trace of other
        experts.
        """
        where, trace = f"{OPTION} trace:{self.path}", self.trace
        check_fits(trace, RouterSizes(0, of.experts, top_k=of.top_k), where)
        if self.layer >= trace.layers:
            raise InputError(f"{LAYER_OPTION} {self.layer}: {where} has {trace.layers} sparse layers, from 0 on")
        expert = trace.expert[self.layer][np.argsort(trace.home, kind="stable")].reshape(-1, of.top_k)
        bounds = [number * len(expert) // of.ranks for number in (of.rank, of.rank + 1)]
        own = expert[bounds[0] : max(bounds[1], bounds[0] + 1)]
        return np.resize(own, (of.tokens, of.top_k)).astype(np.int32)

    @cached_property
    def trace(self) -> RoutingTrace:
        """The file's content. Raises InputError where it is no trace."""
        return read_trace(self.path, f"{OPTION} trace:")


def routing_of(text: str, layer: Optional[int] = None) -> Union[BalancedRouting, SkewedRouting, TracedRouting]:
    """What `--routing` asks for.

    Args:
        text: `balanced`, `skewed:S` or `trace:FILE`. layer: of a trace; None: the lowest.

    Raises InputError: it is none of these, or a layer is given without a trace.
    """
    kind, colon, value = text.partition(":")
    if layer is not None and kind != "trace":
        raise InputError(f"{LAYER_OPTION} is a layer of a trace, with {OPTION} {text}; expected {OPTION} trace:FILE")
    if text == BALANCED:
        return BalancedRouting()
    if kind == "trace" and value:
        return TracedRouting(value, layer or 0)
    try:
        exponent = float(value) if kind == "skewed" and colon else math.nan
    except ValueError:
        exponent = math.nan
    if not 0.0 <= exponent <= MOST_SKEW:
        raise InputError(
            f"{OPTION}: found '{text}', expected balanced, skewed:S with S from 0 to {MOST_SKEW:g}, or trace:FILE"
        )
    return SkewedRouting(exponent)


def busiest_over_mean(routing: BenchRouting, of: TokensOfRank) -> float:
    """Load of the busiest expert over the mean, over all ranks.

    Args:
        routing: of the tokens. of: those of any rank, the others have as many.
    """
    load = np.zeros(of.experts + 1)
    for rank in range(of.ranks):
        own = TokensOfRank(of.tokens, of.top_k, of.experts, rank, of.ranks)
        chosen = routing.choices(own, np.random.default_rng(rank))
        load += np.bincount(chosen.reshape(-1), minlength=of.experts + 1)
    return float(load[:-1].max() / load[:-1].mean())
