"""Expert capacity as a multiple of the evenly spread load."""

import math
from fractions import Fraction
from typing import Any

from locmoe_ops.errors import InputError

# Factors are taken as the nearest fraction with at most this denominator: 1.1 means 11/10, not the double next to it.
LARGEST_DENOMINATOR = 1_000_000


def capacity_by_factor(tokens: int, top_k: int, experts_in_play: int, factor: float) -> int:
    """Slots per (source rank, expert): min(tokens, ceil(factor * top_k * tokens / experts_in_play)), at least 1.

    The usual rule of capacity factors (Switch Transformer, arXiv 2101.03961). More than `tokens` slots are never of
    use: a token goes to an expert at most once.

    Args:
        tokens: tokens of one rank.
        top_k: experts a token is sent to.
        experts_in_play: experts among which these tokens spread.
        factor: slots over the evenly spread load; above 0.

    Raises:
        InputError: a count below 1; a factor that is not a finite number above 0.
    """
    require_count("tokens", tokens)
    require_count("top_k", top_k)
    require_count("experts_in_play", experts_in_play)
    if not (math.isfinite(factor) and factor > 0.0):
        raise InputError(f"capacity: factor is {factor!r}, expected a finite number above 0")
    exact_factor = Fraction(factor).limit_denominator(LARGEST_DENOMINATOR)
    slots = math.ceil(exact_factor * int(top_k) * int(tokens) / int(experts_in_play))
    return max(1, min(int(tokens), slots))


def share_of_tokens(top_k: int, experts: int, held: float) -> float:
    """Share of tokens with a choice among the `held` of their `experts`, where each token makes `top_k` distinct ones
    and all sets of them are as likely: 1 - C(experts - held, top_k) / C(experts, top_k), of the hypergeometric
    distribution, and so the share that sends a copy to a node with that many experts.

    A `held` that is no whole number stands for as large a share of the assignments; then too there are not more such
    tokens than assignments.

    Args:
        top_k: choices of a token. experts: that it chooses among. held: those of them that are counted.
    """
    missed = 1.0
    for chosen in range(top_k):
        missed *= max(0.0, 1.0 - held / (experts - chosen))
    return min(1.0 - missed, top_k * held / experts, 1.0)


def copies_by_factor(tokens: int, share: float, factor: float) -> int:
    """Slots for copies of tokens to a node: min(tokens, ceil(factor * share * tokens)), at least 1.

    Args:
        tokens: tokens of one rank. share: of them, those that want an expert there. factor: slots over that.

    Raises:
        InputError: no tokens; a factor that is not a finite number above 0.
    """
    require_count("tokens", tokens)
    if not (math.isfinite(factor) and factor > 0.0):
        raise InputError(f"capacity: factor is {factor!r}, expected a finite number above 0")
    exact = Fraction(factor).limit_denominator(LARGEST_DENOMINATOR) * Fraction(share).limit_denominator(
        LARGEST_DENOMINATOR
    )
    return max(1, min(int(tokens), math.ceil(exact * int(tokens))))


def factor_of_slots(slots: int, tokens: int, top_k: int, experts_in_play: int) -> float:
    """The capacity factor that asks `capacity_by_factor` for exactly these slots: slots over the even load.

    Exact for up to a million assignments (top_k * tokens) a rank; beyond, the factor may ask for one slot more.

    Args:
        slots: per (source rank, expert), in [1, tokens].
        tokens, top_k, experts_in_play: as for `capacity_by_factor`.

    Raises:
        InputError: a count below 1, or more slots than tokens.
    """
    require_count("tokens", tokens)
    require_count("top_k", top_k)
    require_count("experts_in_play", experts_in_play)
    require_count("slots", slots)
    if slots > tokens:
        raise InputError(f"capacity: slots is {slots}, expected at most the {tokens} tokens of a rank")
    return slots * experts_in_play / (top_k * tokens)


def require_count(name: str, found: Any) -> None:
    """Raises InputError where a count is not an integer of at least 1."""
    if found < 1 or found != int(found):
        raise InputError(f"capacity: {name} is {found!r}, expected an integer of at least 1")
