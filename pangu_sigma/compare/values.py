"""Values of a comparison's file, each checked where it is read; errors name the key, what was found and what is
expected.
"""

import math
import re
from difflib import get_close_matches
from typing import Any, Mapping, Optional, Sequence, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.strict_yaml import shown

_RATE = re.compile(r"[1-9][0-9]{0,5}[kmg]bit")


def as_section(raw: Any, where: str, known: Sequence[str], required: Sequence[str] = ()) -> Mapping[str, Any]:
    """A mapping of keys.

    Args:
        raw: what the file has.
        where: its path in the file; empty: the whole file.
        known: all keys that it may have.
        required: those that it must have.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(raw, dict):
        raise InputError(
            f"{where + ': ' if where else ''}found {shown(raw)}, expected a section with keys {', '.join(known)}"
        )
    for key in raw:
        if key not in known:
            raise InputError(f"{prefix}{key}: unknown key, expected {one_of(key, known)}")
    for key in required:
        if key not in raw:
            raise InputError(f"{prefix}{key}: is missing")
    return raw


def one_of(found: Any, known: Sequence[str]) -> str:
    near = get_close_matches(str(found), known, n=1, cutoff=0.5)
    return f"one of {', '.join(known)}" + (f" (did you mean {near[0]}?)" if near else "")


def as_seeds(raw: Any, where: str) -> Tuple[int, ...]:
    if not isinstance(raw, list) or not raw:
        raise InputError(f"{where}: found {shown(raw)}, expected a list, as in [1, 2, 3]")
    seeds = tuple(as_whole(seed, f"{where}[{position}]", 0) for position, seed in enumerate(raw))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{where}: found {shown(raw)}, expected each seed once")
    return seeds


def as_whole(raw: Any, where: str, minimum: int) -> int:
    """The integer that `raw`, which stands at `where`, is; of at least `minimum`."""
    if isinstance(raw, bool) or not isinstance(raw, int) or raw < minimum:
        raise InputError(f"{where}: found {shown(raw)}, expected an integer >= {minimum}")
    return raw


def as_timeout(raw: Any) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not 0 < raw < math.inf:
        raise InputError(f"run_timeout: found {shown(raw)}, expected seconds > 0")
    return float(raw)


def as_text(raw: Any, where: str, expected: str) -> str:
    """The text that `raw`, which stands at `where`, is; not empty. `expected` says what it names, for the message."""
    if not isinstance(raw, str) or not raw:
        raise InputError(f"{where}: found {shown(raw)}, expected {expected}")
    return raw


def as_rate(raw: Any, where: str, nodes: int) -> Optional[str]:
    """The rate that `raw`, which stands at `where`, is; None for null, as it must be on a cluster of one of `nodes`."""
    if raw is None:
        return None
    if not isinstance(raw, str) or not _RATE.fullmatch(raw):
        raise InputError(f"{where}: found {shown(raw)}, expected null or a rate, as in 200mbit")
    if nodes == 1:
        raise InputError(f"{where} is {raw} with cluster.nodes 1; expected null: one node has no link to another")
    return raw
